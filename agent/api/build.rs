//! Generates the messages and the ttrpc service from `protos/agent.proto`.

use std::io::Error;
use std::path::Path;
use ttrpc_codegen::{Codegen, Customize};

fn main() -> Result<(), Error> {
    println!("cargo:rerun-if-changed=protos/agent.proto");
    let out = std::env::var("OUT_DIR").map_err(Error::other)?;
    Codegen::new()
        .out_dir(&out)
        .input("protos/agent.proto")
        .include("protos")
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .run()?;
    // The generated files carry inner attributes, so they must be modules of their own rather than included text.
    let module =
        |name: &str| format!("#[path = {:?}] pub mod {name};\n", Path::new(&out).join(format!("{name}.rs")));
    std::fs::write(Path::new(&out).join("modules.rs"), module("agent") + &module("agent_ttrpc"))
}
