//! Compiles the protos without protoc: protox makes the descriptor set, which is both kept (for JSON, reflection and the
//! OpenAPI document) and turned into Rust.

use std::error::Error;
use std::path::PathBuf;

const PROTO_DIR: &str = "../../proto";
/// The API, and the error details that answers carry, so that JSON can spell them.
const FILES: [&str; 5] = [
    "carillon/v1/job.proto",
    "carillon/v1/execution.proto",
    "carillon/v1/schedule.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_DIR}");
    let mut compiler = protox::Compiler::new([PROTO_DIR])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;

    // The compiler's own encoding keeps the google.api.http options, which prost's types would drop.
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out_dir.join("carillon_descriptor.bin"), compiler.encode_file_descriptor_set())?;

    tonic_prost_build::configure()
        .bytes(".")
        // What an item of an answer says is what a call's failure says.
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .build_client(true)
        .build_server(true)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
