//! A nats-server that is a leaf node of another one, which has the streams in a JetStream domain of its own.

use std::path::Path;

use anyhow::{Context as _, Result};
use emberline_protocol::jetstream_domain::JetStreamDomain;
use emberline_protocol::permissions::{User, default_users};
use tempfile::TempDir;

use crate::nats::{CONFIG, Nats, NatsServer};
use crate::wait;

/// The domain in which the streams are.
pub const DOMAIN: &str = "hub";
/// The password of the leaf node's own connection.
const LEAF_PASSWORD: &str = "leaf-test";

/// The domain of a leaf node that has one.
pub const LEAF_DOMAIN: &str = "leaf";

/// What a leaf node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafKind {
    /// Its clients use the streams of the hub; it has no JetStream.
    WithoutJetStream,
    /// The same, but it has JetStream in a domain of its own, for other things.
    WithJetStream,
    /// A cell of its own, with its own streams in its own domain. Only what is copied passes the link.
    Cell,
}

/// The two servers; they end when this is dropped. As [`Nats`] it is the leaf node.
#[derive(Debug)]
pub struct LeafNode {
    leaf: NatsServer,
    hub: NatsServer,
    _folder: TempDir,
}

impl Nats for LeafNode {
    fn addresses(&self) -> Vec<String> {
        self.leaf.addresses()
    }

    fn directory(&self) -> &Path {
        self.leaf.directory()
    }
}

impl LeafNode {
    /// Starts both without streams, and waits until they are connected. The hub and a cell have the users of
    /// deploy/nats.conf, another leaf node those that `emberline nats user add` prints for the domain.
    pub async fn start(kind: LeafKind) -> Result<Self> {
        let folder = tempfile::tempdir().context("can't make a directory for configurations")?;
        let listen =
            format!("listen: \"127.0.0.1:-1\", authorization {{ user: leaf, password: {LEAF_PASSWORD} }}");
        let of_hub = in_domain(DOMAIN, &listen)?;
        let hub = start(folder.path(), "hub.conf", &of_hub).await?;
        let port =
            hub.monitoring("varz").await?["leaf"]["port"].as_u64().context("the hub takes no leaf nodes")?;
        let link = format!("url: \"nats-leaf://leaf:{LEAF_PASSWORD}@127.0.0.1:{port}\"");
        let of_leaf = match kind {
            LeafKind::WithoutJetStream => at_the_hub("", &link),
            LeafKind::WithJetStream => at_the_hub(&format!("jetstream {{ domain: {LEAF_DOMAIN} }}"), &link),
            LeafKind::Cell => {
                let denied = "deny_imports: \"emberline.>\", deny_exports: \"emberline.>\"";
                in_domain(LEAF_DOMAIN, &format!("remotes: [ {{ {link}, {denied} }} ]"))?
            }
        };
        let leaf = start(folder.path(), "leaf.conf", &of_leaf).await?;
        wait::until("the leaf node is connected", async || {
            Ok(leaf.monitoring("leafz").await?["leafnodes"].as_u64() == Some(1))
        })
        .await?;
        Ok(Self { leaf, hub, _folder: folder })
    }

    /// The server behind the leaf node.
    pub fn hub(&self) -> &NatsServer {
        &self.hub
    }

    /// What the leaf node has logged so far.
    pub fn log(&self) -> String {
        self.leaf.log()
    }
}

/// deploy/nats.conf with a domain and a link to other servers.
fn in_domain(domain: &str, leafnodes: &str) -> Result<String> {
    let jetstream = format!("jetstream {{ domain: {domain} }}\nleafnodes {{ {leafnodes} }}");
    Ok(std::fs::read_to_string(CONFIG)?.replace("jetstream {}", &jetstream))
}

/// A leaf node whose users are those of [`DOMAIN`].
fn at_the_hub(jetstream: &str, link: &str) -> String {
    let domain: JetStreamDomain = DOMAIN.parse().unwrap_or_default();
    let users = default_users().map(|user| User { domain: domain.clone(), ..user }.to_string()).join("\n");
    format!(
        "max_payload: 8MB\n{jetstream}\nleafnodes {{ remotes: [ {{ {link} }} ] }}\n\
         authorization {{\n  timeout: 5\n  users: [\n{users}\n  ]\n}}\n"
    )
}

async fn start(folder: &Path, name: &str, config: &str) -> Result<NatsServer> {
    let path = folder.join(name);
    std::fs::write(&path, config)?;
    NatsServer::start_with(&path).await
}
