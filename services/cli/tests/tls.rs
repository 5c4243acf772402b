//! `--address https://…`: the command line through somebody who ends TLS before the gateway, as load balancers do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use carillon_testkit::{Cluster, ClusterOptions};
use rcgen::CertifiedKey;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Ends TLS, by a certificate of its own that is valid for `localhost`, and passes on what is said to `gateway`.
async fn proxy(gateway: String, directory: &Path) -> Result<(SocketAddr, PathBuf)> {
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let ca = directory.join("ca.pem");
    std::fs::write(&ca, cert.pem())?;
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, gateway) = (acceptor.clone(), gateway.clone());
            tokio::spawn(async move {
                // Who does not trust it goes.
                let mut outer = acceptor.accept(stream).await?;
                let mut inner = TcpStream::connect(gateway).await?;
                tokio::io::copy_bidirectional(&mut outer, &mut inner).await
            });
        }
    });
    Ok((address, ca))
}

/// What the program says of the jobs that there are, and its exit code.
async fn list(address: &str, further: &[&str]) -> Result<(i32, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carillon"));
    command.env_clear().args(["job", "list", "--address", address]).args(further).stdin(Stdio::null());
    // Aside: the proxy runs on this thread.
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test]
async fn a_gateway_behind_tls_is_asked_if_it_is_trusted() -> Result<()> {
    let options = ClusterOptions { dispatchers: 0, executors: 0, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await?;
    let gateway = cluster.gateway_url();
    let directory = tempfile::tempdir()?;
    let (proxy, ca) = proxy(gateway.trim_start_matches("http://").to_owned(), directory.path()).await?;
    let (encrypted, ca) = (format!("https://localhost:{}", proxy.port()), ca.to_str().context("no text")?);

    let (code, said) = list(&encrypted, &["--ca", ca]).await?;
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("ID"), "{said}");
    // The system does not know it; it is nobody else; it says nothing to who does not ask for TLS; and a gateway speaks none.
    for (address, further, wanted) in [
        (encrypted.as_str(), &[][..], "certificate"),
        (&format!("https://127.0.0.1:{}", proxy.port()), &["--ca", ca], "certificate"),
        (&format!("http://localhost:{}", proxy.port()), &[], "cannot reach"),
        (&gateway.replace("http://", "https://"), &["--ca", ca], "does not speak TLS"),
    ] {
        let (code, said) = list(address, further).await?;
        assert_eq!(code, 69, "{address} {said}");
        assert!(said.contains(wanted), "{address} {said}");
    }
    Ok(())
}
