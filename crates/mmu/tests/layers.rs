//! The layers of the crate: which module may use which. ARCHITECTURE.md has the same table, with
//! what each is for.

use std::path::Path;

use umbra_layers::{Layer, Modules, identifier};

/// Each module, and those that it may use: all of them stand in rows above its own, so no uses run
/// in a circle.
const LAYERS: &[Layer] = &[
    ("id", &[]),
    ("policy", &["id"]),
    ("format", &["id"]),
    ("config", &["format"]),
    ("outcome", &["config", "id"]),
    ("event", &["config", "format"]),
    ("env", &["event", "id"]),
    ("tables", &["config", "env", "event", "format", "id"]),
    ("guest", &["env", "format", "id", "tables"]),
    ("roots", &["format", "id", "tables"]),
    ("derive", &["config", "env", "format", "guest", "id", "tables"]),
    ("sync", &["config", "derive", "env", "event", "format", "guest", "id", "roots", "tables"]),
    (
        "lifecycle",
        &[
            "config", "derive", "env", "event", "format", "guest", "id", "policy", "roots", "sync",
            "tables",
        ],
    ),
    (
        "fault",
        &[
            "config",
            "derive",
            "env",
            "event",
            "format",
            "id",
            "lifecycle",
            "outcome",
            "policy",
            "roots",
            "sync",
            "tables",
        ],
    ),
    ("advice", &["config", "derive", "env", "fault", "format", "id", "policy", "roots", "tables"]),
    ("audit", &["derive", "env", "format", "guest", "id", "lifecycle", "roots", "tables"]),
    (
        "mmu",
        &[
            "advice",
            "audit",
            "config",
            "env",
            "event",
            "fault",
            "id",
            "lifecycle",
            "outcome",
            "policy",
        ],
    ),
];

fn modules() -> Modules {
    Modules::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "")
}

#[test]
fn modules_use_only_what_the_table_allows() {
    modules().assert_layers(LAYERS);
}

#[test]
fn no_field_is_open_to_the_whole_crate() {
    for (_, file) in modules().files() {
        for line in file.code.lines() {
            let field = line.trim().strip_prefix("pub(crate) ").is_some_and(|rest| {
                let name = identifier(rest);
                !name.is_empty() && rest[name.len()..].starts_with(':')
            });
            assert!(!field, "{}: {line}", file.path.display());
        }
    }
}

/// `derive` owns the guest frames beside the shadow pages; what is Tracked changes with whole pages
/// only.
#[test]
fn only_lifecycle_changes_guest_frames() {
    for (module, file) in modules().files() {
        let changes = file.code.contains(".both_mut()");
        assert!(!changes || module == "lifecycle", "{} changes guest frames", file.path.display());
    }
}
