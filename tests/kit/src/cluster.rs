//! A cluster of three nats-servers, each as [`crate::nats`] starts one.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context as _, Result};
use async_nats::Client;
use async_nats::jetstream;

use crate::nats::{CONFIG, Nats, NatsServer, worker_client};
use crate::wait;

/// Two are a majority when one of them is gone.
const SERVERS: usize = 3;
/// How often other ports are tried when somebody else takes one meanwhile.
const TRIES: usize = 5;

/// A running cluster; it ends when this is dropped.
#[derive(Debug)]
pub struct NatsCluster {
    servers: Vec<NatsServer>,
}

impl Nats for NatsCluster {
    fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(NatsServer::address).collect()
    }

    fn directory(&self) -> &Path {
        self.servers.first().map_or(Path::new(""), NatsServer::directory)
    }
}

impl NatsCluster {
    /// Starts three with deploy/nats.conf and waits until they have a leader.
    pub async fn start() -> Result<Self> {
        let mut tries = 1..TRIES;
        loop {
            match Self::start_on(&free_ports()?).await {
                Ok(cluster) => return Ok(cluster),
                Err(error) if tries.next().is_none() => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Each server must know the ports of the others before it starts, so the system can't choose.
    async fn start_on(ports: &[u16]) -> Result<Self> {
        let urls: Vec<String> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let routes = urls.join(",");
        let mut servers = Vec::new();
        for (number, url) in urls.iter().enumerate() {
            let name = name(number);
            // Clients know the addresses that they are given and no others, so that what is put
            // between them and a server stays there.
            let arguments = [
                ["-c", CONFIG].as_slice(),
                &["--name", &name, "--no_advertise"],
                &["--cluster_name", "emberline", "--cluster", url, "--routes", &routes],
            ];
            let arguments = arguments.concat().into_iter().map(Into::into);
            servers.push(NatsServer::start_as(arguments.collect()).await?);
        }
        let cluster = Self { servers };
        cluster.wait_for_leader().await?;
        Ok(cluster)
    }

    async fn wait_for_leader(&self) -> Result<()> {
        // All of them must know it, or the first that is asked refuses to make streams.
        for server in &self.servers {
            wait::until("the cluster has a leader", async || {
                let about = server.monitoring("jsz").await?;
                Ok(about["meta_cluster"]["leader"].as_str().is_some_and(|leader| !leader.is_empty()))
            })
            .await?;
        }
        Ok(())
    }

    /// The number of the server that leads a stream which workers may look at.
    pub async fn leader_of(&self, stream: &str) -> Result<usize> {
        let jetstream = jetstream::new(self.worker_client().await?);
        let mut leader = None;
        wait::until(format!("{stream} has a leader"), async || {
            // Between two leaders nobody answers.
            let found = jetstream.get_stream(stream).await.ok();
            leader = found.and_then(|s| s.cached_info().cluster.clone()).and_then(|c| c.leader);
            Ok(leader.is_some())
        })
        .await?;
        let leader = leader.unwrap_or_default();
        (0..SERVERS).find(|number| name(*number) == leader).context(leader)
    }

    /// Waits until every replica of a stream is online and up to date.
    pub async fn wait_for_replicas(&self, stream: &str) -> Result<()> {
        let jetstream = jetstream::new(self.worker_client().await?);
        wait::until(format!("{stream} has all its replicas"), async || {
            let found = jetstream.get_stream(stream).await.ok();
            let cluster = found.and_then(|s| s.cached_info().cluster.clone());
            Ok(cluster.is_some_and(|c| {
                c.replicas.len() == SERVERS - 1 && c.replicas.iter().all(|r| r.current && !r.offline)
            }))
        })
        .await
    }

    /// Kills one.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        self.get(number)?.stop();
        Ok(())
    }

    /// Starts one again that was killed.
    pub async fn start_again(&mut self, number: usize) -> Result<()> {
        self.get(number)?.start_again().await
    }

    /// A connection with the rights of a worker.
    pub async fn worker_client(&self) -> Result<Client> {
        worker_client(self).await
    }

    fn get(&mut self, number: usize) -> Result<&mut NatsServer> {
        self.servers.get_mut(number).with_context(|| format!("there is no nats-server {number}"))
    }
}

fn name(number: usize) -> String {
    format!("nats-{number}")
}

/// Ports that nobody uses at this moment.
fn free_ports() -> Result<Vec<u16>> {
    // All held at once, so that they differ.
    let held: Result<Vec<TcpListener>, _> = (0..SERVERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    held?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
