//! `cargo xtask trial-mutants`: mistakes in KVM's shadow MMU, each built as a module and put on
//! trial.
//!
//! Debian's packages have the source, and the headers for modules. The edits of `mutants.toml` are
//! ours, and none of the source is in the repository.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use umbra::number::whole;
use umbra_trial::generate;
use umbra_trial::judge::Tally;
use umbra_trial::program::Program;

use super::campaign::{Campaign, Identity, Limits, State};
use super::kernel::{self, Kernel};
use super::machine::{self, Machine};
use super::suspect::{Outcome, Suspect};
use super::{CPU, FOUND, Hypervisor, finding, kernel_program, rules};
use crate::setup::Apt;
use crate::{paths, process, setup};

/// The mistakes.
const MUTANTS: &str = include_str!("mutants.toml");

/// The name of the source as it is.
const CLEAN: &str = "clean";

/// The package whose dependency is the newest kernel's.
const NEWEST: &str = "linux-headers-cloud-amd64";

/// Try the trial by mistakes in a kernel's KVM, or by broken rules of Umbra.
///
/// The source of Debian's newest 6.1 kernel is fetched, but not installed. Each mistake is built as
/// a module, and put on trial with the same programs for the same time. The unchanged source comes
/// first, and must not be convicted; what it shows by the same program does not count. The exit
/// status is 0 if every mistake is convicted or explained, and 10 if not. The same command goes on
/// where the last one has stopped. Of Umbra, each rule of `cargo xtask sabotage` is broken.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask trial-mutants
  cargo xtask trial-mutants clean child-role --minutes 10
  cargo xtask trial-mutants --hypervisor umbra
  cargo xtask trial-mutants --hypervisor umbra KeepUser --programs 20")]
pub struct Arguments {
    /// Only these, as mutants.toml or crates/mmu/sabotage names them; `clean` is the source as it
    /// is [default: all]
    names: Vec<String>,
    /// The hypervisor that has the mistakes
    #[arg(long, value_name = "NAME", default_value = "kvm")]
    hypervisor: Hypervisor,
    /// Of KVM: put each on trial for so long, but no longer than to its first conviction
    #[arg(
        long,
        default_value = "3",
        value_parser = whole::<u64>(1..=100_000),
        allow_negative_numbers = true
    )]
    minutes: u64,
    /// Of Umbra: so many programs, but none behind the first conviction
    #[arg(
        long,
        value_name = "N",
        default_value_t = rules::PROGRAMS,
        value_parser = whole::<u64>(1..=100_000),
        allow_negative_numbers = true
    )]
    programs: u64,
    /// The number of the first program
    #[arg(
        long,
        default_value_t = generate::FIRST_SEED,
        value_parser = whole::<u64>(0..=u64::MAX),
        allow_negative_numbers = true
    )]
    seed: u64,
    /// Of KVM: take so many minutes at most to make a program short
    #[arg(
        long,
        value_name = "N",
        default_value = "2",
        value_parser = whole::<u64>(0..=100_000),
        allow_negative_numbers = true
    )]
    shorten: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mutant: Vec<Mutant>,
}

/// A mistake.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// What is wrong then.
    what: String,
    /// A file of arch/x86/kvm/mmu.
    file: String,
    edits: Vec<Edit>,
    /// Why no guest can show it.
    why: Option<String>,
}

/// One change of a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    /// The first of these words, and behind them
    within: String,
    /// the first of these
    find: String,
    /// become these.
    replace: String,
}

impl Mutant {
    /// All of them, the source as it is before them.
    fn all() -> Vec<Mutant> {
        let file: File = toml::from_str(MUTANTS).expect("a test reads it");
        let clean = Mutant {
            name: CLEAN.into(),
            what: "The source as it is.".into(),
            file: "mmu.c".into(),
            edits: Vec::new(),
            why: None,
        };
        [clean].into_iter().chain(file.mutant).collect()
    }

    /// The file with this mistake.
    fn apply(&self, source: &str) -> Result<String> {
        let mut text = String::from(source);
        for edit in &self.edits {
            let within = text.find(&edit.within);
            let at = within
                .and_then(|from| text[from..].find(&edit.find).map(|at| from + at))
                .with_context(|| {
                    format!(
                        "{} does not fit this kernel: {} has no {:?}",
                        self.name, self.file, edit.find
                    )
                })?;
            text.replace_range(at..at + edit.find.len(), &edit.replace);
        }
        Ok(text)
    }

    /// What the module depends on.
    fn key(&self) -> String {
        self.edits.iter().fold(self.file.clone(), |key, edit| {
            key + "\n" + &edit.within + "\n" + &edit.find + "\n" + &edit.replace
        })
    }
}

/// What came of a mutant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    name: String,
    what: String,
    /// What the module was built from, and how it was tried.
    key: String,
    /// Programs that ran, and their steps.
    programs: u64,
    steps: u64,
    conviction: Option<Found>,
    /// Why there is none.
    why: Option<String>,
}

/// Its first conviction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    symptom: String,
    program: u64,
    seconds: f64,
    length: usize,
}

impl Row {
    fn new(mutant: &Mutant, key: String, state: &State) -> Row {
        let conviction = state.findings.first().map(|found| Found {
            symptom: found.symptom.clone(),
            program: found.seed,
            seconds: found.after_seconds,
            length: found.length,
        });
        Row {
            name: mutant.name.clone(),
            what: mutant.what.clone(),
            key,
            programs: state.programs,
            steps: state.tally.steps,
            conviction,
            why: mutant.why.clone(),
        }
    }

    /// Whether it is as it should be.
    fn is_well(&self) -> bool {
        (self.name == CLEAN) == self.conviction.is_none() || self.why.is_some()
    }
}

/// The table, as Markdown.
fn table(release: &str, rows: &[Row]) -> String {
    let mut text = format!(
        "KVM of {release} with mistakes, on trial\n\n\
         | mutant | mistake | convicted by | program | after | shortest program |\n|---|---|---|---|---|---|\n"
    );
    for row in rows {
        let _ = write!(text, "| {} | {} | ", row.name, row.what);
        let _ = match (&row.conviction, &row.why) {
            (Some(found), _) => writeln!(
                text,
                "{} | {} | {:.0} s | {} steps |",
                found.symptom, found.program, found.seconds, found.length
            ),
            (None, why) => writeln!(
                text,
                "nothing in {} programs, {} steps{} | | | |",
                row.programs,
                row.steps,
                why.as_ref().map_or_else(String::new, |why| format!(". {why}"))
            ),
        };
    }
    text
}

/// Builds and tries them.
///
/// # Errors
/// The source cannot be fetched or built, or does not run.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.hypervisor == Hypervisor::Umbra {
        return rules::run(&arguments.names, arguments.seed, arguments.programs);
    }
    let all = Mutant::all();
    if let Some(name) =
        arguments.names.iter().find(|name| !all.iter().any(|mutant| mutant.name == **name))
    {
        let known: Vec<&str> = all.iter().map(|mutant| mutant.name.as_str()).collect();
        bail!("there is no mutant {name}; there are {}", known.join(", "));
    }
    setup::need_program(machine::PROGRAM, machine::PACKAGE)?;
    for program in ["make", "gcc-12"] {
        setup::need_program(program, program)?;
    }
    let headers = Apt::new().dependency(NEWEST)?;
    let release = headers.strip_prefix("linux-headers-").context("a package of headers")?;
    let root = paths::target_dir()?.join("trial");
    let tree = Tree::prepare(release, &root.join("mutants").join(release))?;
    let kernel = kernel::fetch(&format!("linux-image-{release}"), None, kernel::AMD, &root)?;
    let report = tree.root.join("report.json");
    let mut rows: Vec<Row> = finding::earlier_rows(&report)?;
    let chosen =
        |mutant: &&Mutant| arguments.names.is_empty() || arguments.names.contains(&mutant.name);
    for mutant in all.iter().filter(chosen) {
        let key =
            format!("{}\n{} minutes from {}", mutant.key(), arguments.minutes, arguments.seed);
        if rows.iter().any(|row| row.name == mutant.name && row.key == key) {
            continue;
        }
        eprintln!("xtask: {}: {}", mutant.name, mutant.what);
        let clean = tree.kernel(&kernel, &all[0])?;
        let kernel = tree.kernel(&kernel, mutant)?;
        let folder = tree.root.join(&mutant.name);
        let state = put_on_trial(&folder, &kernel, &clean, mutant, arguments)
            .with_context(|| format!("mutant {}", mutant.name))?;
        rows.retain(|row| row.name != mutant.name);
        rows.push(Row::new(mutant, key, &state));
        let place = |row: &Row| all.iter().position(|mutant| mutant.name == row.name);
        rows.sort_by_key(place);
        finding::put(&report, &serde_json::to_string_pretty(&rows)?)?;
        finding::put(&report.with_extension("txt"), &table(release, &rows))?;
    }
    print!("{}", table(release, &rows));
    println!("report: {}", report.with_extension("txt").display());
    let well = rows.iter().all(Row::is_well);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// A mutant, and the source as it is. Kernels without a mistake may differ from bare hardware, too.
/// What both show by one program is not the mistake.
struct Beside {
    mutant: Machine,
    clean: Option<Machine>,
}

impl Suspect for Beside {
    fn run(&mut self, program: &Program) -> Result<Outcome> {
        let outcome = self.mutant.run(program)?;
        let (Outcome::Found(found), Some(clean)) = (&outcome, &mut self.clean) else {
            return Ok(outcome);
        };
        match clean.run(program)? {
            Outcome::Found(same) if same.symptom == found.symptom => {
                Ok(Outcome::Clean(Tally::default()))
            }
            _ => Ok(outcome),
        }
    }
}

/// Tries a kernel until it is convicted, or time is up.
fn put_on_trial(
    folder: &Path,
    kernel: &Kernel,
    clean: &Kernel,
    mutant: &Mutant,
    arguments: &Arguments,
) -> Result<State> {
    // What another edit or another time left.
    let _ = fs::remove_dir_all(folder);
    let beside =
        (mutant.name != CLEAN).then(|| Machine::new(clean, &folder.join(CLEAN), CPU, 1, None));
    let mut machine =
        Beside { mutant: Machine::new(kernel, folder, CPU, 1, None)?, clean: beside.transpose()? };
    let identity = Identity {
        suspect: format!("{} with mutant {}", kernel.name, mutant.name),
        options: format!("--kernel {}", kernel.name),
        cpu: format!("{CPU} (QEMU, without hardware virtualization)"),
    };
    let limits = Limits {
        time: Duration::from_secs(60 * arguments.minutes),
        programs: None,
        shorten: Duration::from_secs(60 * arguments.shorten),
        first: true,
    };
    Campaign::open(folder, &identity, arguments.seed)?.run(&mut machine, &limits, kernel_program)
}

/// The unpacked source and headers of a kernel.
struct Tree {
    root: PathBuf,
    /// Where modules are built against.
    headers: PathBuf,
    /// The source of KVM as it is.
    source: PathBuf,
    /// That which is built.
    work: PathBuf,
}

/// What is taken of the kernel's source.
const PARTS: [&str; 2] = ["arch/x86/kvm", "virt/kvm"];

impl Tree {
    /// Fetches and unpacks what is not there yet.
    fn prepare(release: &str, root: &Path) -> Result<Tree> {
        let mut numbers = release.split('-');
        let (Some(version), Some(abi)) = (numbers.next(), numbers.next()) else {
            bail!("{release} is no kernel of Debian's");
        };
        let series = version.rsplit_once('.').map_or(version, |(series, _)| series);
        let unpacked = root.join("packages");
        let sources = unpacked.join("usr/src");
        let common = sources.join(format!("linux-headers-{version}-{abi}-common"));
        let source = unpacked.join(format!("linux-source-{series}"));
        let tree = Tree {
            root: root.to_path_buf(),
            headers: sources.join(format!("linux-headers-{release}")),
            source: source.join(PARTS[0]),
            work: root.join("work"),
        };
        if tree.work.exists() {
            return Ok(tree);
        }
        fs::create_dir_all(root).with_context(|| root.display().to_string())?;
        let mut apt = Apt::new();
        for package in [
            format!("linux-headers-{release}"),
            format!("linux-headers-{version}-{abi}-common"),
            format!("linux-kbuild-{series}"),
            format!("linux-source-{series}"),
        ] {
            eprintln!("xtask: fetching {package} (it is not installed)");
            let download = tempfile::tempdir_in(paths::target_dir()?)?;
            apt.unpack(&package, download.path(), &unpacked)?;
        }
        // The headers name each other by their place in a system.
        let makefile = tree.headers.join("Makefile");
        let text = fs::read_to_string(&makefile)?;
        fs::write(&makefile, text.replace("/usr/src/", &format!("{}/", sources.display())))?;
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--xz").arg("--directory").arg(&unpacked);
        tar.arg("--file").arg(sources.join(format!("linux-source-{series}.tar.xz")));
        tar.args(PARTS.map(|part| format!("linux-source-{series}/{part}")));
        process::show(&mut tar)?;
        // KVM's parts include each other by the kernel's tree.
        let scratch = root.join("work.new");
        let _ = fs::remove_dir_all(&scratch);
        for part in PARTS {
            for tree in [&common, &scratch] {
                let place = tree.join(part);
                fs::create_dir_all(&place)?;
                process::show(
                    Command::new("cp").arg("-r").arg(source.join(part).join(".")).arg(&place),
                )?;
            }
        }
        fs::rename(&scratch, &tree.work)?;
        Ok(tree)
    }

    /// The kernel with a mutant's modules in place of its own.
    fn kernel(&self, kernel: &Kernel, mutant: &Mutant) -> Result<Kernel> {
        let folder = self.root.join("modules").join(&mutant.name);
        let key = folder.join("key");
        if fs::read_to_string(&key).ok() != Some(mutant.key()) {
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder)?;
            self.build(mutant, &folder)?;
            fs::write(&key, mutant.key())?;
        }
        let own = |(name, parameters, contents): &(String, &'static str, Vec<u8>)| {
            let file = folder.join(name);
            let contents = if file.exists() { fs::read(&file)? } else { contents.clone() };
            anyhow::Ok((name.clone(), *parameters, contents))
        };
        let modules = kernel.modules.iter().map(own).collect::<Result<_>>()?;
        Ok(Kernel { name: kernel.name.clone(), image: kernel.image.clone(), modules })
    }

    /// Builds the modules of KVM into a folder, without what debuggers need.
    fn build(&self, mutant: &Mutant, folder: &Path) -> Result<()> {
        let kvm = self.work.join(PARTS[0]);
        for name in ["mmu.c", "paging_tmpl.h"] {
            let read = |tree: &Path| {
                let file = tree.join("mmu").join(name);
                fs::read_to_string(&file).with_context(|| file.display().to_string())
            };
            let source = read(&self.source)?;
            let text = if mutant.file == name { mutant.apply(&source)? } else { source };
            // What stays as it is need not be built again.
            if read(&kvm)? != text {
                fs::write(kvm.join("mmu").join(name), text)?;
            }
        }
        let mut make = Command::new("make");
        make.arg("-C").arg(&self.headers).arg(format!("M={}", kvm.display()));
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        process::capture(make.arg(format!("-j{jobs}")).arg("modules"))
            .with_context(|| format!("building mutant {}", mutant.name))?;
        for module in ["kvm.ko", "kvm-amd.ko"] {
            let mut strip = Command::new("strip");
            strip.arg("--strip-debug").arg("-o").arg(folder.join(module)).arg(kvm.join(module));
            process::show(&mut strip)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_mutant_is_a_few_words_with_a_name_of_its_own() {
        let all = Mutant::all();
        let names: BTreeSet<&str> = all.iter().map(|mutant| mutant.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.len() > 15);
        for mutant in &all[1..] {
            assert!(["mmu.c", "paging_tmpl.h"].contains(&mutant.file.as_str()), "{mutant:?}");
            assert!(!mutant.edits.is_empty() && mutant.what.ends_with('.'), "{mutant:?}");
            for edit in &mutant.edits {
                for words in [&edit.within, &edit.find] {
                    assert!(!words.contains('\n') && words.len() < 90, "{words}");
                }
                assert_ne!(edit.find, edit.replace);
            }
        }
    }

    fn mutant(edits: &[[&str; 3]]) -> Mutant {
        let edit = |&[within, find, replace]: &[&str; 3]| Edit {
            within: within.into(),
            find: find.into(),
            replace: replace.into(),
        };
        let (name, what, file) = ("x".into(), "X.".into(), "mmu.c".into());
        Mutant { name, what, file, edits: edits.iter().map(edit).collect(), why: None }
    }

    #[test]
    fn an_edit_changes_the_first_words_behind_others() {
        let source = "a() { if (x) y; }\nb() { if (x) y; }\n";
        let edited = mutant(&[["b(", "(x)", "(true)"], ["b(", "y", "z"]]).apply(source).unwrap();
        assert_eq!(edited, "a() { if (x) y; }\nb() { if (true) z; }\n");
        let error = mutant(&[["b(", "(w)", ""]]).apply(source).unwrap_err().to_string();
        assert_eq!(error, "x does not fit this kernel: mmu.c has no \"(w)\"");
    }

    #[test]
    fn a_mistake_that_nobody_sees_needs_a_reason() {
        let row = |name: &str, convicted: bool, why: Option<&str>| Row {
            name: name.into(),
            what: "X.".into(),
            key: String::new(),
            programs: 2,
            steps: 800,
            conviction: convicted.then(|| Found {
                symptom: "host: BUG".into(),
                program: 7,
                seconds: 1.6,
                length: 3,
            }),
            why: why.map(String::from),
        };
        let rows =
            [row(CLEAN, false, None), row("a", true, None), row("b", false, Some("Nobody asks."))];
        assert!(rows.iter().all(Row::is_well));
        assert!(!row(CLEAN, true, None).is_well() && !row("b", false, None).is_well());
        let table = table("6.1", &rows);
        assert!(table.contains("| a | X. | host: BUG | 7 | 2 s | 3 steps |"), "{table}");
        assert!(table.contains("nothing in 2 programs, 800 steps. Nobody asks."), "{table}");
    }
}
