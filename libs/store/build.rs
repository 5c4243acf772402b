fn main() {
    // The migrations are compiled in; cargo does not see that by itself.
    println!("cargo:rerun-if-changed=../../migrations");
}
