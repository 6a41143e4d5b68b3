//! A configuration file to begin with: the tables that a role needs, and every setting of the role with its
//! default. Every setting is a comment, except the folders of the units for systemd.

use std::fmt::Write as _;

use crate::config::Role;
use crate::config::settings::{Setting, by_section};

/// Columns of a comment.
const WIDTH: usize = 98;

const SERVE: &str = r#"# To begin, remove the # in front of these lines and adapt them.
{address_note}
#[[listener]]
#address = "0.0.0.0:443"

# A site without names takes clients whose server name no other site has.
#[[site]]
#names = ["www.example.org"]
{certificate_note}#certificates = [{ chain = "{folder}cert.pem", key = "{folder}key.pem" }]

# Other routes: proxy (with an [[upstream]]), redirect, respond, verdict.
#[[site.route]]
#path = "/"
#files = "/var/www/html"
"#;

const BALANCE: &str = r#"# To begin, remove the # in front of these lines and adapt them.
{address_note}
#[[listener]]
#address = "0.0.0.0:443"
#role = "balance"

# One table for each server. In front of a sessile server, the name must be its server.name.
#[[balance.server]]
#name = "web1"
#address = "10.0.0.1:443"

#[[balance.server]]
#name = "web2"
#address = "10.0.0.2:443"
"#;

/// A balancer has the route part of the farm key, and a server the whole key.
const ROUTE_KEY: &str = "/var/lib/sessile/route.key";
const ROUTE_KEY_MEANING: &str = "The route part of the farm key, which opens the labels of tickets. `sessile \
     key export --route` writes the file on a server. \"none\": the balancer reads no labels. Default: farm.key in the \
     state folder, if that file exists.";

/// Where the process will run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere: the state folder is that of the user, and files are beside the configuration file.
    Anywhere,
    /// In the units for systemd: they name the state folder, the folder of logs and the credentials.
    SystemdUnit,
}

/// The text of the file.
#[must_use]
pub fn template(role: Role, place: Place) -> String {
    let (command, tables) = match role {
        Role::Serve => ("serve", SERVE),
        Role::Balance => ("balance", BALANCE),
    };
    let mut text = format!(
        "# The configuration of `sessile {command}`. A line that begins with # has no effect. Each setting has its\n\
         # default, or an example if the default depends on the machine. To check and explain this file:\n\
         #\n\
         #   {}\n\n",
        check_command(role, place)
    );
    text += &fill(tables, command, place);
    for (section, settings) in by_section() {
        let settings: Vec<_> = settings
            .iter()
            .filter(|setting| applies(setting, role))
            .collect();
        if settings.is_empty() {
            continue;
        }
        let _ = write!(text, "\n[{section}]\n");
        for setting in settings {
            text += &lines(setting, role, place);
        }
    }
    text
}

fn check_command(role: Role, place: Place) -> &'static str {
    match (role, place) {
        (Role::Serve, Place::SystemdUnit) => {
            "CREDENTIALS_DIRECTORY=/etc/sessile/tls sessile check /etc/sessile/serve.toml"
        }
        (Role::Balance, Place::SystemdUnit) => "sessile check /etc/sessile/balance.toml",
        (_, Place::Anywhere) => "sessile check FILE",
    }
}

/// The tables of a role, with the paths of the place.
fn fill(tables: &str, command: &str, place: Place) -> String {
    let (address_note, certificate_note, folder) = match place {
        Place::Anywhere => (String::new(), "", ""),
        Place::SystemdUnit => (
            format!("# The address must equal ListenStream= in sessile-{command}.socket.\n"),
            "# The unit loads both files from /etc/sessile/tls (LoadCredential=), so only root need be able to\n\
             # read them there.\n",
            "$CREDENTIALS_DIRECTORY/",
        ),
    };
    tables
        .replace("{address_note}\n", &address_note)
        .replace("{certificate_note}", certificate_note)
        .replace("{folder}", folder)
}

/// True if a process of this role uses the setting.
fn applies(setting: &Setting, role: Role) -> bool {
    let is_for_balancing = setting.name.starts_with("balance.");
    match role {
        Role::Serve => !is_for_balancing,
        Role::Balance => {
            is_for_balancing || setting.name == "key.file" || setting.restart.contains(&role)
        }
    }
}

/// A setting: its meaning as a comment, and its line.
fn lines(setting: &Setting, role: Role, place: Place) -> String {
    let (_, key) = setting.parts();
    if (role, setting.name) == (Role::Balance, "key.file") {
        return format!("{}#{key} = \"{ROUTE_KEY}\"\n", comment(ROUTE_KEY_MEANING));
    }
    let mut meaning = capitalized(setting.meaning) + ".";
    if let Some(words) = setting.default_words {
        let _ = write!(meaning, " Default: {words}.");
    }
    let line = match (place, setting.name) {
        (Place::SystemdUnit, "server.state-dir") => format!("{key} = \"/var/lib/sessile\""),
        (Place::SystemdUnit, "log.access") => format!("{key} = \"/var/log/sessile/access.log\""),
        _ => format!("#{key} = {}", setting.example()),
    };
    format!("{}{line}\n", comment(&meaning))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).collect()
}

/// A text as lines of a comment.
fn comment(text: &str) -> String {
    let mut lines = String::from("\n");
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += &line;
            lines.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line += word;
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::file::parse;

    const ROLES: [Role; 2] = [Role::Serve, Role::Balance];

    fn read(text: &str) -> Config {
        parse(text, "/etc/sessile/s.toml".as_ref()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The text with every setting and every table switched on.
    fn uncommented(text: &str) -> String {
        let lines = text.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
            _ => line,
        });
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    #[test]
    fn the_file_changes_nothing_until_it_is_edited() {
        for role in ROLES {
            let config = read(&template(role, Place::Anywhere));
            assert_eq!(config, read(""), "{role:?}");
        }
    }

    #[test]
    fn the_file_is_valid_with_everything_switched_on() {
        for place in [Place::Anywhere, Place::SystemdUnit] {
            for role in ROLES {
                let text = template(role, place);
                let config = read(&uncommented(&text));
                assert!(config.has_role(role), "{text}");
            }
        }
    }

    #[test]
    fn a_unit_gets_its_folders() {
        let config = read(&template(Role::Serve, Place::SystemdUnit));
        assert_eq!(
            config.server.state_dir,
            std::path::Path::new("/var/lib/sessile")
        );
        let text = uncommented(&template(Role::Serve, Place::SystemdUnit));
        assert!(
            text.contains("chain = \"$CREDENTIALS_DIRECTORY/cert.pem\""),
            "{text}"
        );
    }

    #[test]
    fn a_role_gets_the_settings_that_it_uses() {
        let has = |role, line: &str| template(role, Place::Anywhere).contains(line);
        assert!(has(Role::Serve, "\n#tickets = true\n"));
        assert!(!has(Role::Balance, "\n#tickets = true\n"));
        assert!(has(Role::Balance, "\n#policy = \"source\"\n"));
        assert!(!has(Role::Serve, "\n[balance]\n"));
        assert!(has(
            Role::Balance,
            "\n#file = \"/var/lib/sessile/route.key\"\n"
        ));
        assert!(has(
            Role::Serve,
            "\n#file = \"/var/lib/sessile/farm.key\"\n"
        ));
    }

    #[test]
    fn no_line_is_too_long_to_read() {
        for role in ROLES {
            let text = template(role, Place::SystemdUnit);
            for line in text.lines() {
                assert!(line.chars().count() <= 110, "{line}");
            }
        }
    }
}
