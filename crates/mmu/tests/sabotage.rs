//! Every rule can still be broken as `crates/mmu/sabotage` says. `cargo xtask sabotage` does it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use umbra_sabotage::{Mutation, Switch};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sabotage")
}

fn mutations() -> Vec<Mutation> {
    umbra_sabotage::read(&folder()).unwrap_or_else(|error| panic!("{error:#}"))
}

#[test]
fn every_mutation_applies() {
    if let Err(error) =
        umbra_sabotage::weave(&folder().with_file_name("src"), &mutations(), Switch::File)
    {
        panic!(
            "{error:#}\n({} says how mutations are written)",
            folder().join("README.md").display()
        );
    }
}

#[test]
fn the_table_has_every_rule() {
    let text = fs::read_to_string(folder().join("README.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let named: BTreeSet<&str> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
    let mutations = mutations();
    let names: BTreeSet<&str> = mutations.iter().map(|mutation| mutation.name.as_str()).collect();
    assert_eq!(named, names);
}
