//! A gateway, asked over gRPC with messages that are known by their descriptors alone. The first call connects.

use std::io::Read as _;
use std::time::Duration;

use carillon_proto::PLATFORM_HEADER;
use carillon_proto::codec::DynamicCodec;
use http::uri::PathAndQuery;
use prost_reflect::{DynamicMessage, MethodDescriptor};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::failure::Failure;

/// Above any answer: a page of a list is about 2 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// More than all certificates of a system.
const CA_BYTES_MAX: u64 = 4 << 20;
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    address: String,
    timeout: Duration,
    platform: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Takes `http://host:port`, or without the scheme, or `https://host:port`: then `ca` is a file with the certificates that are
    /// trusted, or else the system's are; and the platform for which it asks, if it is one.
    pub(crate) fn new(
        address: &str,
        ca: Option<&str>,
        timeout: Duration,
        platform: Option<&str>,
    ) -> Result<Self, Failure> {
        let address = complete(address)?;
        let platform = platform.map(|platform| MetadataValue::try_from(platform.as_bytes())).transpose();
        let platform = platform.map_err(|_| Failure::usage("--platform: must not contain control characters"))?;
        let wrong = |error: tonic::transport::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let cause = cause.unwrap_or_else(|| error.to_string());
            Failure::usage(format!("--address {address}: is no address such as http://127.0.0.1:3051: {cause}"))
        };
        let mut endpoint = Endpoint::from_shared(address.clone()).map_err(wrong)?.connect_timeout(timeout);
        if is_encrypted(&address) {
            endpoint = endpoint.tls_config(trust(ca)?).map_err(|error| {
                let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                Failure::Local(format!("cannot speak TLS with {address}: {cause}"))
            })?;
        } else if ca.is_some() {
            return Err(Failure::usage(format!("--ca: is for https, and the address is {address}")));
        }
        Ok(Self { channel: endpoint.connect_lazy(), address, timeout, platform })
    }

    /// One call, as long as it may take.
    pub(crate) async fn call(
        &self,
        method: &MethodDescriptor,
        request: DynamicMessage,
    ) -> Result<DynamicMessage, Failure> {
        let refused = |status: Status| Failure::Refused { address: self.address.clone(), status: Box::new(status) };
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let path = path.parse::<PathAndQuery>().map_err(|error| Failure::Local(format!("{path}: {error}")))?;
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let mut request = Request::new(request);
        if let Some(platform) = &self.platform {
            request.metadata_mut().insert(PLATFORM_HEADER, platform.clone());
        }
        let answer = async {
            // The channel alone knows when it can be used, and says so by this.
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            grpc.unary(request, path, DynamicCodec(method.output())).await
        };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(refused(status)),
            Err(_) => Err(Failure::Late { address: self.address.clone(), timeout: self.timeout }),
        }
    }
}

fn complete(address: &str) -> Result<String, Failure> {
    match address.split_once("://") {
        None => Ok(format!("http://{address}")),
        Some((scheme, _)) if ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) => {
            Ok(address.to_owned())
        }
        Some(_) => Err(Failure::usage(format!("--address {address}: must begin with http:// or https://"))),
    }
}

fn is_encrypted(address: &str) -> bool {
    address.split_once("://").is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("https"))
}

/// Whose certificates are trusted: those of the file alone, or the system's.
fn trust(ca: Option<&str>) -> Result<ClientTlsConfig, Failure> {
    let Some(file) = ca else { return Ok(ClientTlsConfig::new().with_native_roots()) };
    let wrong = |rule: &str| Failure::usage(format!("--ca {file}: {rule}"));
    let mut pem = String::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(CA_BYTES_MAX + 1).read_to_string(&mut pem));
    match read {
        Err(error) => Err(wrong(&format!("cannot be read: {error}"))),
        Ok(bytes) if bytes as u64 > CA_BYTES_MAX => Err(wrong(&format!("has more than {CA_BYTES_MAX} bytes"))),
        Ok(_) if !pem.contains(PEM_BEGIN) => Err(wrong(&format!("has no certificate: {PEM_BEGIN} is not in it"))),
        Ok(_) => Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_scheme_and_has_one_of_two() {
        assert_eq!(complete("127.0.0.1:3051").ok().as_deref(), Some("http://127.0.0.1:3051"));
        for address in ["HTTP://h:1", "https://h"] {
            assert_eq!(complete(address).ok().as_deref(), Some(address));
        }
        assert!(is_encrypted("HTTPS://h") && !is_encrypted("http://https"));
        let said = complete("unix:///tmp/x").map_err(|failure| failure.lines().join("\n")).unwrap_err();
        assert!(said.contains("must begin with http:// or https://"), "{said}");
    }

    #[test]
    fn certificates_are_of_a_file_that_has_some_and_for_https() {
        let said = |address: &str, ca: &str| {
            let made = Client::new(address, Some(ca), Duration::from_secs(1), None);
            made.map(|_| ()).map_err(|failure| failure.lines().join("\n")).unwrap_err()
        };
        assert!(said("https://h", "/nowhere").contains("--ca /nowhere: cannot be read"));
        assert!(said("https://h", "Cargo.toml").contains("--ca Cargo.toml: has no certificate"));
        assert!(said("h:1", "Cargo.toml").contains("is for https"));
    }
}
