//! `--config FILE`: options in a file.
//!
//! The file is TOML, and its keys are the names of the options. What it says is put before the
//! command line as options, unless the command line has the same option: so there is one parser,
//! with one set of messages.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Table, Value};

use crate::error::Error;
use crate::report::name_of;
use crate::untrusted::shown;

/// Options of commands that take others from a file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigOptions {
    /// Take options from a TOML file, too
    ///
    /// --print-config prints such a file. Its keys are the names of the options without `--`, such
    /// as `memory = 256`. Options that may be given more than once are arrays. The command line
    /// comes first. Paths are as on the command line.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print all options as such a file, and end
    #[arg(long, hide_short_help = true)]
    pub print_config: bool,
}

/// The ids of these two.
const CONFIG: &str = "config";
const PRINT: &str = "print_config";

/// Larger files are no options.
const MAX_BYTES: u64 = 1 << 20;

/// A command line with the options of its file in it, and the name of the file.
pub struct Expanded {
    /// All arguments.
    pub arguments: Vec<OsString>,
    /// What the user calls the file.
    pub file: Option<String>,
}

/// Puts the options of `--config` into a command line.
///
/// # Errors
/// The file cannot be read, or has what is no option.
pub fn expand(program: &Command, arguments: Vec<OsString>) -> Result<Expanded, Error> {
    let unchanged = |arguments| Ok(Expanded { arguments, file: None });
    // What the file may have yet is not required here.
    let mut lenient = program.clone();
    let names: Vec<String> =
        program.get_subcommands().map(|command| command.get_name().into()).collect();
    for name in &names {
        lenient = lenient
            .mut_subcommand(name, |command| command.mut_args(|option| option.required(false)));
    }
    // What is wrong is said when all is there.
    let Ok(matches) = lenient.try_get_matches_from(&arguments) else { return unchanged(arguments) };
    let Some((name, given)) = matches.subcommand() else { return unchanged(arguments) };
    let Some(command) = program.find_subcommand(name).filter(|command| has(command, CONFIG)) else {
        return unchanged(arguments);
    };
    let Some(path) = given.get_one::<PathBuf>(CONFIG) else { return unchanged(arguments) };
    let file = name_of(path);
    let added = options(command, given, &read(path)?)
        .map_err(|why| Error::Input(format!("the configuration {file} {why}")))?;
    // Behind the name of the command, which no option comes before.
    let at =
        arguments.iter().position(|argument| argument == name).map_or(arguments.len(), |at| at + 1);
    let mut all = arguments;
    all.splice(at..at, added);
    Ok(Expanded { arguments: all, file: Some(file) })
}

fn has(command: &Command, id: &str) -> bool {
    command.get_arguments().any(|option| option.get_id() == id)
}

fn read(path: &Path) -> Result<Table, Error> {
    let name = name_of(path);
    let refuse = |why: String| Error::Input(format!("cannot read the configuration {name}: {why}"));
    let metadata =
        fs::metadata(path).map_err(|error| refuse(format!("{error}; give a readable file")))?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(refuse(
            "it is no file of options; give a TOML file such as --print-config prints".into(),
        ));
    }
    let text =
        fs::read_to_string(path).map_err(|error| refuse(format!("{error}; give a TOML file")))?;
    text.parse::<Table>().map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        refuse(format!("line {line} is no TOML ({}); correct it", shown(error.message())))
    })
}

/// The options of a table that the command line does not have; or what is wrong with one.
fn options(command: &Command, given: &ArgMatches, table: &Table) -> Result<Vec<OsString>, String> {
    let mut options = Vec::new();
    for (key, value) in table {
        let known = command.get_arguments().find(|option| option.get_long() == Some(key));
        let is_own = |option: &&Arg| option.get_id() != CONFIG && option.get_id() != PRINT;
        let Some(option) = known.filter(is_own) else {
            let names: Vec<&str> =
                command.get_arguments().filter(is_own).filter_map(Arg::get_long).collect();
            let names = names.join(", ");
            return Err(format!("has {}, which is no option; there are {names}", shown(key)));
        };
        let values = words(option, value).ok_or_else(|| {
            format!("has {key} = {}, and --{key} takes {}", shown(&value.to_string()), kind(option))
        })?;
        if given.value_source(option.get_id().as_str()) != Some(ValueSource::CommandLine) {
            options.extend(values.into_iter().map(OsString::from));
        }
    }
    Ok(options)
}

/// What an option takes in a file.
fn kind(option: &Arg) -> &'static str {
    match option.get_action() {
        ArgAction::SetTrue => "true or false",
        ArgAction::Append => "an array of texts",
        _ => "a text or a number",
    }
}

/// An option as words of a command line; none if the value is of another kind.
fn words(option: &Arg, value: &Value) -> Option<Vec<String>> {
    let name = option.get_long()?;
    let one = |value: &Value| match value {
        Value::String(text) => Some(format!("--{name}={text}")),
        Value::Integer(number) => Some(format!("--{name}={number}")),
        _ => None,
    };
    // `--audit` may stand alone, too.
    let may_stand_alone = option.get_num_args().is_some_and(|count| count.min_values() == 0);
    match (option.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(is_set)) => {
            Some(is_set.then(|| format!("--{name}")).into_iter().collect())
        }
        (ArgAction::SetTrue, _) => None,
        (ArgAction::Append, Value::Array(values)) => values.iter().map(one).collect(),
        (_, Value::Boolean(is_set)) if may_stand_alone => {
            Some(is_set.then(|| format!("--{name}")).into_iter().collect())
        }
        (_, value) => Some(vec![one(value)?]),
    }
}

/// All options of a command line as a file, if that is asked for.
///
/// # Errors
/// One of them is not text.
pub fn printed(program: &Command, matches: &ArgMatches) -> Result<Option<String>, Error> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(None) };
    let Some(command) = program.find_subcommand(name).filter(|command| has(command, PRINT)) else {
        return Ok(None);
    };
    if !matches.get_flag(PRINT) {
        return Ok(None);
    }
    let mut text = format!("# Options of `umbra {name}`; --config takes them from a file.\n");
    for option in command
        .get_arguments()
        .filter(|option| option.get_id() != CONFIG && option.get_id() != PRINT)
    {
        let Some(name) = option.get_long() else { continue };
        let Some(value) = value(option, matches).map_err(|word| {
            Error::Input(format!(
                "--{name} {} is not text, which a file of options is",
                shown(&word)
            ))
        })?
        else {
            continue;
        };
        text += &toml::to_string(&Table::from_iter([(name.to_owned(), value)]))
            .map_err(|error| Error::Machine(format!("cannot print --{name}: {error}")))?;
    }
    Ok(Some(text))
}

/// The value of an option; none if it has none. An error is what is not text.
fn value(option: &Arg, matches: &ArgMatches) -> Result<Option<Value>, String> {
    let id = option.get_id().as_str();
    if !matches.ids().any(|known| known == id) {
        return Ok(None);
    }
    if matches!(option.get_action(), ArgAction::SetTrue) {
        return Ok(matches.get_flag(id).then_some(Value::Boolean(true)));
    }
    let Some(given) = matches.get_raw(id) else { return Ok(None) };
    let values: Vec<Value> = given
        .map(|word| {
            let text = word.to_str().ok_or_else(|| word.to_string_lossy().into_owned())?;
            // A number is the same text either way.
            let number = text.parse::<i64>().ok().filter(|number| number.to_string() == text);
            Ok(number.map_or_else(|| Value::String(text.into()), Value::Integer))
        })
        .collect::<Result<_, String>>()?;
    Ok(match option.get_action() {
        ArgAction::Append => Some(Value::Array(values)),
        _ => values.into_iter().next(),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    struct File(tempfile::TempDir);

    impl File {
        fn new(text: &str) -> File {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("run.toml"), text).unwrap();
            File(folder)
        }

        fn expand(&self, options: &[&str]) -> Result<Vec<String>, String> {
            let path = self.0.path().join("run.toml");
            let line = ["umbra", "run", "--config", path.to_str().unwrap()];
            let expanded =
                expand(&Cli::command(), line.iter().chain(options).map(OsString::from).collect());
            let expanded = expanded.map_err(|error| error.to_string())?;
            Ok(expanded
                .arguments
                .into_iter()
                .skip(2)
                .map(|word| word.into_string().unwrap())
                .collect())
        }
    }

    fn printed_of(line: &[&str]) -> Option<String> {
        let matches = Cli::command().try_get_matches_from(["umbra"].iter().chain(line)).unwrap();
        printed(&Cli::command(), &matches).unwrap()
    }

    #[test]
    fn a_file_has_the_same_names_and_the_command_line_comes_first() {
        let file = File::new(
            "kernel = 'k'\nmemory = 256\naudit = true\nscreen = false\nwithout = ['cr3', 'quick']\nappend = '-x'\n",
        );
        let words = file.expand(&["--memory", "64"]).unwrap();
        let own: Vec<&str> =
            words.iter().map(String::as_str).take_while(|word| *word != "--config").collect();
        let mut sorted = own.clone();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            ["--append=-x", "--audit", "--kernel=k", "--without=cr3", "--without=quick"]
        );
        assert!(
            Cli::command()
                .try_get_matches_from(
                    ["umbra", "run"].iter().copied().chain(words.iter().map(String::as_str))
                )
                .is_ok()
        );
        assert!(
            file.expand(&["--without", "detach"]).unwrap().iter().all(|word| !word.contains("cr3"))
        );
        assert!(File::new("audit = 7\n").expand(&[]).unwrap().contains(&"--audit=7".into()));
    }

    #[test]
    fn what_is_wrong_in_a_file_is_one_sentence() {
        for (text, why) in [
            ("memroy = 3\n", "has memroy, which is no option; there are kernel, initrd"),
            ("config = 'x'\n", "has config, which is no option"),
            ("screen = 3\n", "has screen = 3, and --screen takes true or false"),
            ("memory = 1.5\n", "has memory = 1.5, and --memory takes a text or a number"),
            ("memory = true\n", "--memory takes a text or a number"),
            ("kernel = 'k'\nmemory =\n", "line 2 is no TOML"),
            ("\"a\\u001bb\" = 3\n", "has a\\u{1b}b, which"),
        ] {
            let sentence = File::new(text).expand(&[]).unwrap_err();
            assert!(sentence.contains(why) && !sentence.contains('\n'), "{sentence}");
        }
        let line = ["umbra", "run", "--config", "/nonexistent/run.toml"].map(OsString::from);
        let sentence = expand(&Cli::command(), line.to_vec()).err().unwrap().to_string();
        assert!(
            sentence.contains("cannot read the configuration /nonexistent/run.toml"),
            "{sentence}"
        );
    }

    #[test]
    fn what_is_printed_is_read_back_as_the_same() {
        let line = [
            "run",
            "--kernel",
            "k \"x\"",
            "--without",
            "cr3,quick",
            "--audit",
            "--screen",
            "--memory",
            "1G",
            "--append",
            "a='b' \\ #c",
            "--timeout",
            "5",
        ];
        let text = printed_of(&[&line[..], &["--print-config"]].concat()).unwrap();
        assert!(
            text.contains("timeout = 5\n") && text.contains("machine = \"penryn\"\n"),
            "{text}"
        );
        let words = File::new(&text).expand(&[]).unwrap();
        let again: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_eq!(
            printed_of(&[&["run"], &again[..], &["--print-config"]].concat()).unwrap(),
            text
        );
        assert_eq!(printed_of(&line), None);
        assert_eq!(printed_of(&["doctor"]), None);
    }
}
