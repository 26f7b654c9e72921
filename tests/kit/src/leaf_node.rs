//! A nats-server that is a leaf node of another one, which has the streams in a JetStream domain of its own.

use std::path::Path;

use anyhow::{Context as _, Result};
use emberline_protocol::permissions::{User, default_users};
use tempfile::TempDir;

use crate::nats::{CONFIG, Nats, NatsServer};
use crate::wait;

/// The domain in which the streams are.
pub const DOMAIN: &str = "hub";
/// The password of the leaf node's own connection.
const LEAF_PASSWORD: &str = "leaf-test";

/// What a leaf node has of JetStream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafJetStream {
    /// Nothing.
    Off,
    /// A domain of its own, without streams.
    OwnDomain,
}

/// The two servers; they end when this is dropped. As [`Nats`] it is the leaf node.
#[derive(Debug)]
pub struct LeafNode {
    leaf: NatsServer,
    _hub: NatsServer,
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
    /// Starts both without streams, and waits until they are connected. The hub has the users of deploy/nats.conf,
    /// the leaf node those that `emberline nats user add` prints for the domain.
    pub async fn start(jetstream: LeafJetStream) -> Result<Self> {
        let folder = tempfile::tempdir().context("can't make a directory for configurations")?;
        let of_hub = std::fs::read_to_string(CONFIG)?.replace(
            "jetstream {}",
            &format!(
                "jetstream {{ domain: {DOMAIN} }}\n\
                 leafnodes {{ listen: \"127.0.0.1:-1\", authorization {{ user: leaf, password: {LEAF_PASSWORD} }} }}"
            ),
        );
        let hub = start(folder.path(), "hub.conf", &of_hub).await?;
        let port = hub.monitoring("varz").await?["leaf"]["port"].as_u64().context("the hub takes no leaf nodes")?;
        let own = match jetstream {
            LeafJetStream::Off => "",
            LeafJetStream::OwnDomain => "jetstream { domain: leaf }\n",
        };
        let users = default_users().map(|user| User { domain: DOMAIN.parse().unwrap_or_default(), ..user }.to_string());
        let of_leaf = format!(
            "max_payload: 8MB\n{own}\
             leafnodes {{ remotes: [ {{ url: \"nats-leaf://leaf:{LEAF_PASSWORD}@127.0.0.1:{port}\" }} ] }}\n\
             authorization {{\n  timeout: 5\n  users: [\n{}\n  ]\n}}\n",
            users.join("\n")
        );
        let leaf = start(folder.path(), "leaf.conf", &of_leaf).await?;
        wait::until("the leaf node is connected", async || {
            Ok(leaf.monitoring("leafz").await?["leafnodes"].as_u64() == Some(1))
        })
        .await?;
        Ok(Self { leaf, _hub: hub, _folder: folder })
    }

    /// What the leaf node has logged so far.
    pub fn log(&self) -> String {
        self.leaf.log()
    }
}

async fn start(folder: &Path, name: &str, config: &str) -> Result<NatsServer> {
    let path = folder.join(name);
    std::fs::write(&path, config)?;
    NatsServer::start_with(&path).await
}
