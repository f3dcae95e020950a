//! A new migration is no change of any source file that the compiler knows of.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
