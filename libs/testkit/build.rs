//! `sqlx::migrate!` reads the folder when this crate is compiled; cargo must know to compile it again.
fn main() {
    println!("cargo::rerun-if-changed=../../migrations");
}
