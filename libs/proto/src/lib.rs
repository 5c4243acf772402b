//! The wire contract of Carillon: types, clients and servers generated from `proto/`, and the descriptor set that routes,
//! JSON and documents are derived from.

/// The package `carillon.v1`.
pub mod v1 {
    #![allow(
        clippy::all,
        clippy::too_many_lines,
        clippy::allow_attributes_without_reason,
        unreachable_pub,
        reason = "generated"
    )]
    tonic::include_proto!("carillon.v1");
}

/// With nothing said beside the job.
impl From<v1::Job> for v1::CreateJobRequest {
    fn from(job: v1::Job) -> Self {
        Self { job: Some(job), ..Self::default() }
    }
}

/// The compiled protos with all imports, options (`google.api.http`) and comments, as a `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carillon_descriptor.bin"));
