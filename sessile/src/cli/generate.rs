//! `sessile generate`: man pages and shell completions, for packages and for those who install the program alone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _, Subcommand, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Arguments, print};

const EXAMPLES: &str = r"Examples:
  sessile generate man ~/.local/share/man/man1
  sessile generate completions zsh > ~/.zfunc/_sessile";

/// Write man pages, or completions for a shell.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Write a man page for each command into a folder
    Man {
        /// The folder; it is made if it does not exist
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Write the completions for a shell to the standard output
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Man { folder } => {
            write_pages(&folder).with_context(|| format!("{}", folder.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        What::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "sessile", &mut text);
            print(&String::from_utf8(text)?)
        }
    }
}

/// Writes the page of each command into a folder.
fn write_pages(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in pages()? {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// The pages, each with the name of its file.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let mut commands = vec![command];
    let mut pages = Vec::new();
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().cloned());
        pages.push(page(command)?);
    }
    Ok(pages)
}

/// The page of one command. `Man::render` would fill the lines of the examples to paragraphs.
fn page(command: Command) -> io::Result<(String, Vec<u8>)> {
    let help = command.get_after_help().map(ToString::to_string);
    let is_top = command.get_name() == "sessile";
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command)
        .manual("sessile")
        .source(concat!("sessile ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    render_help(&mut rest, &help.unwrap_or_default());
    if !is_top {
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold("sessile"), roman("(1)")]);
    }
    rest.to_writer(&mut page)?;
    Ok((man.get_filename(), page))
}

/// The text after the options of `--help`. Indented lines stay as they are; other lines become paragraphs.
fn render_help(roff: &mut Roff, help: &str) {
    let mut section = "";
    for paragraph in help.split("\n\n").filter(|text| !text.is_empty()) {
        let heading = if paragraph.contains("\n  ") {
            "EXAMPLES"
        } else {
            "NOTES"
        };
        if heading == section {
            roff.control("PP", []);
        } else {
            roff.control("SH", [heading]);
            section = heading;
        }
        let lines = paragraph.lines();
        let lines: Vec<_> = lines
            .filter(|line| !matches!(*line, "Example:" | "Examples:"))
            .collect();
        for block in lines.chunk_by(|one, next| is_indented(one) == is_indented(next)) {
            render_block(roff, block);
        }
    }
}

fn render_block(roff: &mut Roff, lines: &[&str]) {
    let is_example = lines.iter().all(|line| is_indented(line));
    if is_example {
        roff.control("nf", []);
    }
    for line in lines {
        roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    if is_example {
        roff.control("fi", []);
    }
}

fn is_indented(line: &str) -> bool {
    line.starts_with("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(command: &Command) -> Vec<Command> {
        let below = command.get_subcommands().flat_map(all);
        std::iter::once(command.clone()).chain(below).collect()
    }

    #[test]
    fn every_command_has_a_page_whose_examples_keep_their_lines() {
        let pages = pages().unwrap();
        let page = |name: &str| {
            let found = pages.iter().find(|(file, _)| file == name);
            String::from_utf8(found.expect(name).1.clone()).unwrap()
        };
        assert!(page("sessile-serve.1").contains("\n.nf\nsessile serve \\-\\-config"));
        assert!(page("sessile-key-export.1").contains("\n.SH NOTES\nA server that"));
        assert!(!page("sessile.1").contains("\n.SH EXTRA\n"));
        let mut command = Arguments::command().disable_help_subcommand(true);
        command.build();
        assert_eq!(pages.len(), all(&command).len());
    }

    #[test]
    fn shells_complete_the_names_of_files_folders_and_hosts() {
        let mut command = Arguments::command();
        command.build();
        for command in all(&command) {
            for argument in command.get_arguments() {
                let names = argument.get_value_names().unwrap_or_default();
                let hint = argument.get_value_hint();
                let fits = match names.first().map(|name| name.as_str()) {
                    Some("DIR") => hint == ValueHint::DirPath,
                    Some("FILE" | "FILE.reg" | "PATH" | "PEM" | "BACKUP") => {
                        matches!(hint, ValueHint::FilePath | ValueHint::AnyPath)
                    }
                    Some("HOST:PORT") => hint == ValueHint::Hostname,
                    _ => true,
                };
                assert!(
                    fits,
                    "{} {}: {hint:?}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }
}
