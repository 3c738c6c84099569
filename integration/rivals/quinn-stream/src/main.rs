//! A QUIC stream between two hosts, for the comparison of integration/run bench.
//!
//!   quinn-stream sink ADDRESS:PORT CERTIFICATE
//!   quinn-stream source ADDRESS:PORT CERTIFICATE SECONDS
//!
//! The sink makes a certificate, writes it to the file, takes one stream to its end and prints JSON:
//! bytes and the seconds from the first to the last of them. The source sends for so long, and prints
//! the same of what it sent.
//! Congestion control is CUBIC as it comes; windows are wide, so that nothing but the path and the
//! programs is the limit. AES-256-GCM, like tapd.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::crypto::CryptoProvider;
use quinn::rustls::crypto::ring::{cipher_suite, default_provider};
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::rustls::{ClientConfig, RootCertStore, ServerConfig};
use quinn::{Connection, Endpoint, TransportConfig, VarInt};

/// The name in the certificate.
const NAME: &str = "sink";
/// Bytes of one write or read.
const CHUNK: usize = 256 << 10;
/// Bytes that may be under way in a stream: far more than the path holds.
const WINDOW: u32 = 16 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["sink", address, certificate] => sink(address.parse()?, certificate).await,
        ["source", address, certificate, seconds] => {
            source(address.parse()?, certificate, Duration::from_secs_f64(seconds.parse()?)).await
        }
        _ => bail!("quinn-stream sink ADDRESS:PORT FILE | source ADDRESS:PORT FILE SECONDS"),
    }
}

/// AES-256-GCM for the data; the first packets of QUIC are AES-128-GCM by its definition.
fn provider() -> Arc<CryptoProvider> {
    let cipher_suites =
        vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..default_provider() })
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.stream_receive_window(VarInt::from_u32(WINDOW));
    config.send_window(u64::from(WINDOW));
    Arc::new(config)
}

async fn sink(address: SocketAddr, certificate: &str) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.key_pair.serialize_der());
    let tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport());
    let endpoint = Endpoint::server(config, address)?;
    // Under its name only when it is whole: the source waits for it.
    let unfinished = format!("{certificate}.new");
    std::fs::write(&unfinished, made.cert.der())?;
    std::fs::rename(&unfinished, certificate)?;
    let connection = endpoint.accept().await.context("no connection")?.await?;
    let mut stream = connection.accept_uni().await?;
    let (mut bytes, mut first) = (0u64, None);
    while let Some(chunk) = stream.read_chunk(CHUNK, true).await? {
        first.get_or_insert_with(Instant::now);
        bytes += chunk.bytes.len() as u64;
    }
    let seconds = first.context("nothing came")?.elapsed().as_secs_f64();
    println!("{{\"bytes\":{bytes},\"seconds\":{seconds}}}");
    finish(&connection).await;
    Ok(())
}

async fn source(address: SocketAddr, certificate: &str, span: Duration) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(std::fs::read(certificate)?))?;
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport());
    let mut endpoint = Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
    endpoint.set_default_client_config(config);
    let connection = endpoint.connect(address, NAME)?.await?;
    let mut stream = connection.open_uni().await?;
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < span {
        stream.write_all(&chunk).await?;
        bytes += CHUNK as u64;
    }
    stream.finish()?;
    stream.stopped().await?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"bytes\":{bytes},\"seconds\":{seconds}}}");
    finish(&connection).await;
    endpoint.wait_idle().await;
    Ok(())
}

/// Ends the connection and lets the other side know.
async fn finish(connection: &Connection) {
    connection.close(VarInt::from_u32(0), b"");
    // The other side may be gone already.
    let _ = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
}
