//! A gateway, asked over gRPC with messages that are known by their descriptors alone. The first call connects.

use std::time::Duration;

use carillon_proto::codec::DynamicCodec;
use http::uri::PathAndQuery;
use prost_reflect::{DynamicMessage, MethodDescriptor};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::failure::Failure;

/// Above any answer: a page of a list is about 2 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    address: String,
    timeout: Duration,
    platform: Option<MetadataValue<Ascii>>,
}

/// Names the platform that the caller is of.
const PLATFORM_HEADER: &str = "x-platform-id";

impl Client {
    /// Takes `http://host:port`, or without the scheme; and the platform for which it asks, if it is one.
    pub(crate) fn new(address: &str, timeout: Duration, platform: Option<&str>) -> Result<Self, Failure> {
        let address = complete(address)?;
        let platform = platform.map(|platform| MetadataValue::try_from(platform.as_bytes())).transpose();
        let platform = platform.map_err(|_| Failure::usage("--platform: must not contain control characters"))?;
        let wrong = |error: tonic::transport::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let cause = cause.unwrap_or_else(|| error.to_string());
            Failure::usage(format!("--address {address}: is no address such as http://127.0.0.1:3051: {cause}"))
        };
        let endpoint = Endpoint::from_shared(address.clone()).map_err(wrong)?.connect_timeout(timeout);
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
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => Ok(address.to_owned()),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => Err(Failure::usage(format!(
            "--address {address}: this program speaks no TLS: ask the gateway within its network, or through a tunnel, by http://"
        ))),
        Some(_) => Err(Failure::usage(format!("--address {address}: must begin with http://"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_scheme_and_https_is_refused_plainly() {
        assert_eq!(complete("127.0.0.1:3051").ok().as_deref(), Some("http://127.0.0.1:3051"));
        assert_eq!(complete("HTTP://h:1").ok().as_deref(), Some("HTTP://h:1"));
        let said = |address: &str| complete(address).map_err(|failure| failure.lines().join("\n")).unwrap_err();
        assert!(said("https://h").contains("speaks no TLS"));
        assert!(said("unix:///tmp/x").contains("must begin with http://"));
    }
}
