//! placeholder
#[test]
fn version() {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_sheep-run")).arg("--version").output().unwrap();
    assert!(out.status.success());
}
