//! Certificates for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// A certification authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its private key, as PEM files.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "Test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Its certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate to a file.
    pub fn write(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, &self.pem)?;
        Ok(path)
    }

    /// Makes a certificate of servers and clients with these names (or addresses), which is valid since an hour.
    pub fn certificate(&self, folder: &Path, file: &str, names: &[&str]) -> Result<CertificateFiles> {
        self.certificate_until(folder, file, names, Duration::from_secs(365 * 24 * 60 * 60))
    }

    /// Makes one that has expired.
    pub fn expired_certificate(&self, folder: &Path, file: &str, names: &[&str]) -> Result<CertificateFiles> {
        self.certificate_until(folder, file, names, Duration::from_secs(30 * 60))
    }

    /// Makes one that ends `length` after its begin.
    fn certificate_until(
        &self,
        folder: &Path,
        file: &str,
        names: &[&str],
        length: Duration,
    ) -> Result<CertificateFiles> {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let begin = SystemTime::now() - Duration::from_secs(60 * 60);
        params.not_before = begin.into();
        params.not_after = (begin + length).into();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let own = KeyPair::generate()?;
        let (certificate, key) = (folder.join(format!("{file}.pem")), folder.join(format!("{file}.key")));
        fs::write(&certificate, params.signed_by(&own, &self.issuer)?.pem())?;
        fs::write(&key, own.serialize_pem())?;
        Ok(CertificateFiles { certificate, key })
    }
}
