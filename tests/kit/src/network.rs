//! Two hosts on one machine and a bad network between them: the far host is a network namespace of Linux, at the other
//! end of a pair of virtual Ethernet devices.
//!
//! It takes root, and `ip` and `tc` of iproute2.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::proxy::DelayingProxy;

/// The device of the far host.
const FAR_DEVICE: &str = "eth0";
/// 198.18.0.0/15, which is for tests of networks (RFC 2544): each pair of hosts takes 4 of its addresses.
const FIRST_ADDRESS: u32 = 0xc612_0000;
const PAIRS: u32 = 1 << 15;
/// Tells the networks of this process apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A host on which a test starts processes; by default the only one, whose servers listen on 127.0.0.1.
#[derive(Debug, Clone)]
pub struct TestHost {
    /// Where its servers listen.
    pub address: Ipv4Addr,
    /// The network namespace that it is, if that is not the test's own.
    namespace: Option<String>,
}

impl Default for TestHost {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST, namespace: None }
    }
}

impl TestHost {
    /// Runs `program` there. The process is the program's own: `ip` becomes what it runs.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }
}

/// What is wrong with a network, in each direction.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// How much later a packet arrives: half a round trip.
    pub delay: Duration,
    /// How many of 100 packets are lost.
    pub loss_percent: u32,
}

/// Two hosts and the link between them, which are gone when this is dropped.
#[derive(Debug)]
pub struct Network {
    /// The namespace, and the device of the near host.
    name: String,
    near: TestHost,
    far: TestHost,
    /// What the link itself does not delay.
    missing_delay: Option<Duration>,
    proxies: Vec<DelayingProxy>,
}

impl Network {
    /// Makes the far host, and a link as bad as `quality`.
    ///
    /// Where the kernel has no netem, packets are lost all the same; the delay is made by the proxies of
    /// [`Network::way_to`].
    pub fn start(quality: Quality) -> Result<Self> {
        let name = format!("em{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let first = FIRST_ADDRESS + 4 * rand::random_range(0..PAIRS);
        let mut network = Self {
            near: TestHost { address: Ipv4Addr::from(first + 1), namespace: None },
            far: TestHost { address: Ipv4Addr::from(first + 2), namespace: Some(name.clone()) },
            name,
            missing_delay: None,
            proxies: Vec::new(),
        };
        network.make_link()?;
        network.impair(quality)?;
        Ok(network)
    }

    /// The host of the test itself.
    pub fn near(&self) -> &TestHost {
        &self.near
    }

    /// The other host.
    pub fn far(&self) -> &TestHost {
        &self.far
    }

    /// Where one host reaches `server` (host and port) on the other: the server itself, or a proxy that delays what
    /// passes where the link can't.
    pub async fn way_to(&mut self, server: String) -> Result<String> {
        let Some(delay) = self.missing_delay else { return Ok(server) };
        let proxy = DelayingProxy::start(self.near.address, server, delay).await?;
        let address = proxy.address().to_owned();
        self.proxies.push(proxy);
        Ok(address)
    }

    /// Cuts the link: the far host's device goes down, and what the near host sends gets lost without a word.
    pub fn cut(&self) -> Result<()> {
        run("ip", &["-n", &self.name, "link", "set", FAR_DEVICE, "down"])
    }

    /// Makes the link whole again.
    pub fn mend(&self) -> Result<()> {
        run("ip", &["-n", &self.name, "link", "set", FAR_DEVICE, "up"])
    }

    fn make_link(&self) -> Result<()> {
        let name = self.name.as_str();
        let [near, far] = [&self.near, &self.far].map(|host| format!("{}/30", host.address));
        run("ip", &["netns", "add", name])?;
        run("ip", &["link", "add", name, "type", "veth", "peer", "name", FAR_DEVICE, "netns", name])?;
        run("ip", &["address", "add", &near, "dev", name])?;
        run("ip", &["-n", name, "address", "add", &far, "dev", FAR_DEVICE])?;
        run("ip", &["link", "set", name, "up"])?;
        run("ip", &["-n", name, "link", "set", FAR_DEVICE, "up"])?;
        run("ip", &["-n", name, "link", "set", "lo", "up"])
    }

    fn impair(&mut self, quality: Quality) -> Result<()> {
        let Quality { delay, loss_percent } = quality;
        let (time, share) = (format!("{}us", delay.as_micros()), format!("{loss_percent}%"));
        let netem = ["root", "netem", "delay", &time, "loss", &share];
        let Err(error) = self.on_both_ends(&[&["qdisc", "add"], &netem]) else {
            println!("the link delays packets by {delay:?} each way and loses {share}");
            return Ok(());
        };
        println!(
            "note: this kernel has no netem ({error:#}): the link loses {share} of packets, and the delay of {delay:?} \
             each way is made by a TCP proxy"
        );
        self.missing_delay = Some(delay);
        self.on_both_ends(&[&["qdisc", "add"], &["clsact"]])?;
        let program = loses(loss_percent);
        self.on_both_ends(&[&["filter", "add"], &["egress", "bpf", "direct-action", "bytecode", &program]])
    }

    /// Runs `tc` with these arguments for each end of the link, whose device is named between them.
    fn on_both_ends(&self, arguments: &[&[&str]; 2]) -> Result<()> {
        let [command, what] = arguments;
        run("tc", &[command, ["dev", &self.name].as_slice(), what].concat())?;
        run("tc", &[["-n", &self.name].as_slice(), command, &["dev", FAR_DEVICE], what].concat())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not made can't be removed; the namespace's processes have ended with their owners.
        let _ = run("ip", &["link", "delete", &self.name]);
        let _ = run("ip", &["netns", "delete", &self.name]);
    }
}

/// A filter in classic BPF, as `tc` reads it: four instructions.
fn loses(percent: u32) -> String {
    // Loads a random number (SKF_AD_OFF + SKF_AD_RANDOM); if it is not below the limit, goes over the next instruction,
    // which drops the packet (TC_ACT_SHOT), to the last, which lets it pass (TC_ACT_OK).
    let limit = u32::MAX / 100 * percent;
    format!("4,32 0 0 4294963256,53 1 0 {limit},6 0 0 2,6 0 0 0")
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
