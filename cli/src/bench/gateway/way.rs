//! The ways on which Emberline's function reaches nats-server, each measured as a system of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::report::EMBERLINE;
use crate::up::bus_way::{BusWay, CertificateFiles, EdgePlan};
use crate::up::host::FunctionHost;
use crate::up::plan::NATS_CONFIG;

/// A way from the function to nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A socket in clear text.
    Plain,
    /// A socket with TLS inside. Workers stay in clear text, so that only the function differs.
    Tls,
    /// HTTP through an edge.
    Edge,
    /// HTTPS through an edge.
    SecureEdge,
}

/// What a plan of a stack has of its way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PlannedWay {
    pub(crate) nats_config: PathBuf,
    pub(crate) bus_way: BusWay,
}

impl Way {
    /// The system's name in the report.
    pub(crate) fn system(self) -> &'static str {
        match self {
            Self::Plain => EMBERLINE,
            Self::Tls => "Emberline (tls)",
            Self::Edge => "Emberline (edge)",
            Self::SecureEdge => "Emberline (secure-edge)",
        }
    }

    /// Writes what the way needs into `folder`: certificates for the address of `edge`, at which nats-server listens,
    /// too, and an edge if there is one. `root` is the folder of deploy/.
    pub(crate) fn plan(
        self,
        host: FunctionHost,
        root: &Path,
        folder: &Path,
        edge: SocketAddr,
    ) -> anyhow::Result<PlannedWay> {
        let config = root.join(NATS_CONFIG);
        let plan = |nats_config, bus_way| PlannedWay { nats_config, bus_way };
        let edge_plan = |certificate| -> anyhow::Result<BusWay> {
            Ok(BusWay::Edge(EdgePlan { program: std::env::current_exe()?, listen: edge, certificate }))
        };
        Ok(match self {
            Self::Plain => plan(config, BusWay::Plain),
            Self::Tls => {
                let files = certify(edge, folder)?;
                let ca = fs::read_to_string(&files.certificate)?;
                plan(with_tls(&config, &files, folder)?, BusWay::Tls { ca })
            }
            Self::Edge => plan(config, edge_plan(None)?),
            Self::SecureEdge => {
                ensure!(
                    host == FunctionHost::Local,
                    "Spin does not trust the edge's certificate; measure this way with --host local"
                );
                plan(config, edge_plan(Some(certify(edge, folder)?))?)
            }
        })
    }
}

/// Writes a certificate for the IP address of `server`, which is its own authority.
fn certify(server: SocketAddr, folder: &Path) -> anyhow::Result<CertificateFiles> {
    let made = rcgen::generate_simple_self_signed([server.ip().to_string()])?;
    let files = CertificateFiles { certificate: folder.join("server.pem"), key: folder.join("server.key") };
    fs::create_dir_all(folder)?;
    fs::write(&files.certificate, made.cert.pem())?;
    fs::write(&files.key, made.signing_key.serialize_pem())?;
    Ok(files)
}

/// Writes a configuration that offers TLS, too.
fn with_tls(config: &Path, files: &CertificateFiles, folder: &Path) -> anyhow::Result<PathBuf> {
    let text = fs::read_to_string(config).with_context(|| config.display().to_string())?;
    let [certificate, key] = [&files.certificate, &files.key].map(|path| path.to_string_lossy());
    let tls = format!("tls {{cert_file: {certificate:?}, key_file: {key:?}}}\nallow_non_tls: true\n");
    let extended = folder.join("nats.conf");
    fs::write(&extended, text + &tls)?;
    Ok(extended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_has_a_configuration_and_a_certificate_that_the_function_trusts() {
        let (root, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = root.path().join(NATS_CONFIG);
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        fs::write(&config, "jetstream {}\n").unwrap();
        let edge = "127.0.0.1:8443".parse().unwrap();
        let plan = |way: Way, host| way.plan(host, root.path(), folder.path(), edge);
        let plain = plan(Way::Plain, FunctionHost::Spin).unwrap();
        assert_eq!(plain, PlannedWay { nats_config: config, bus_way: BusWay::Plain });
        let tls = plan(Way::Tls, FunctionHost::Spin).unwrap();
        let text = fs::read_to_string(tls.nats_config).unwrap();
        assert!(text.starts_with("jetstream {}\ntls {cert_file: \"/"), "{text}");
        let BusWay::Tls { ca } = tls.bus_way else { panic!("{:?}", tls.bus_way) };
        assert_eq!(ca, fs::read_to_string(folder.path().join("server.pem")).unwrap());
        assert!(plan(Way::SecureEdge, FunctionHost::Spin).is_err());
        let secure = plan(Way::SecureEdge, FunctionHost::Local).unwrap();
        assert!(matches!(secure.bus_way, BusWay::Edge(EdgePlan { certificate: Some(_), .. })));
    }
}
