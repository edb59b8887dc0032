//! `homing tunnel setup`: what the tunnel server's installer asks, one question after the other, or all of it by flags.
//!
//! 1. Where it listens (external, internal, the RTSP gateway's) and what devices dial (public), each tried at once.
//! 2. Who may ask at the internal address, and which dispatcher account registers devices.
//! 3. The private CA is made, the file written, the service installed if wanted; what is left to do is told.
//!
//! | module | what |
//! |---|---|
//! | [`addresses`] | where it listens, what it is called, what devices dial |
//! | [`ask`] | flags, questions, answers |
//! | [`mod@file`] | the configuration file |
//! | [`machine`] | this machine's addresses, and the service |
//!
//! Run again, it begins with what the file says. Invariant: a file that is there is only replaced by who says so; no secret
//! is an argument; what is merely doubtful is a warning, since the network may be finished later.

mod addresses;
mod ask;
mod file;
mod machine;

use super::{
    client::{
        read_secret,
        terminal::{line, say},
    },
    print, runtime,
};
use crate::config;
use addresses::{ask_addresses, ask_gateway, with_port};
use anyhow::Context;
use ask::{Asker, Question};
use clap::Args;
use homing_base::password;
use homing_protocol::Secret;
use homing_tunnel::{Config, setup};
use machine::Service;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Where nothing else is said.
const DISPATCHER_PORT: u16 = 7444;

const PASSWORD_LENGTH: usize = 20;

#[derive(Args)]
pub(super) struct Options {
    /// Asks nothing: flags, what the file says, and defaults.
    #[arg(long)]
    yes: bool,
    /// What it is called on the page and in logs.
    #[arg(long)]
    name: Option<String>,
    /// Where devices' connections arrive on this machine, IP:PORT.
    #[arg(long)]
    external: Option<String>,
    /// Where the VMS asks, IP:PORT; not the same IP address and port as the external one.
    #[arg(long)]
    internal: Option<String>,
    /// Name or IP address by which the VMS calls this machine, for the certificate of the internal address; again, or with
    /// commas, for several. Needed where that is every address of this machine.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    name_inside: Vec<String>,
    /// What devices dial, HOST:PORT; again, or with commas, for several.
    #[arg(long, value_delimiter = ',')]
    public: Vec<String>,
    /// Where RTSP clients connect, IP:PORT; empty: nowhere.
    #[arg(long)]
    rtsp: Option<String>,
    /// The same inside TLS.
    #[arg(long)]
    rtsps: Option<String>,
    /// Asks the VMS for user and password, as it is by default.
    #[arg(long, conflicts_with = "no_credentials")]
    credentials: bool,
    /// Asks the VMS for neither: the firewall alone keeps strangers away.
    #[arg(long)]
    no_credentials: bool,
    /// User of the internal address.
    #[arg(long)]
    user: Option<String>,
    /// A file with the password of the internal address, or `-`; otherwise one is made and shown.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The dispatcher's address for tunnel servers, HOST:PORT.
    #[arg(long)]
    dispatcher: Option<String>,
    /// The dispatcher's CA (its dispatcher-ca.pem), or `web` where it has a certificate of the public web.
    #[arg(long, value_name = "FILE")]
    dispatcher_ca: Option<String>,
    /// The account there.
    #[arg(long)]
    account: Option<String>,
    /// A file with the account's password, or `-`.
    #[arg(long, value_name = "FILE")]
    account_password_file: Option<PathBuf>,
    /// PEM certificate chain of your own for the external address; otherwise a private CA is made.
    #[arg(long, value_name = "FILE", requires = "private_key")]
    certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,
    /// What devices shall trust, with a certificate of your own that is not of the public web.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    trust_anchor: Option<PathBuf>,
    /// Folder of database, master key and private CA.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Replaces a configuration file that says otherwise; the one before is kept.
    #[arg(long)]
    replace: bool,
    /// Installs and starts the systemd service.
    #[arg(long, conflicts_with = "no_service")]
    service: bool,
    /// Does not offer to.
    #[arg(long)]
    no_service: bool,
    /// Where units are; another folder than the usual is only written to.
    #[arg(long, value_name = "FOLDER", default_value = machine::UNITS)]
    units: PathBuf,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// Something is missing, or cannot be meant: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A check did not pass, or a file is not to be replaced: exit code 1.
    #[error("{0}")]
    Unfit(String),
    /// This machine's fault: exit code 1.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

pub(super) fn run(file: &Path, options: Options) -> anyhow::Result<ExitCode> {
    Ok(match set_up(file, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refused) => {
            say(&format!("homing: {refused}"));
            ExitCode::from(if matches!(refused, Refused::Usage(_)) { 2 } else { 1 })
        }
    })
}

fn set_up(file: &Path, mut options: Options) -> Result<(), Refused> {
    let runtime = runtime()?;
    let before = existing(file)?;
    let asker = Asker { silent: options.yes };
    let mut config = before.clone().unwrap_or_default();
    take(&mut config.name, options.name.take());
    take(&mut config.data, options.data.take());
    take(&mut config.certificate, options.certificate.take());
    take(&mut config.private_key, options.private_key.take());
    take(&mut config.trust_anchor, options.trust_anchor.take());

    ask_addresses(&asker, &mut options, &mut config, before.as_ref())?;
    let failed = |error: anyhow::Error| Refused::Unfit(format!("{error:#}"));
    setup::prepare(&config).map_err(failed)?;
    let mut warnings = runtime.block_on(setup::look_at_public(&config))?;
    for warning in &warnings {
        say(&format!("  Warning: {warning}."));
    }
    ask_gateway(&asker, &mut options, &mut config, before.as_ref())?;
    let made = ask_credentials(&asker, &mut options, &mut config)?;
    warnings.extend(config.vms.warnings(config.internal));
    warnings.extend(ask_dispatcher(&asker, &mut options, &mut config, &runtime)?);
    setup::check(&config).map_err(failed)?;

    write(&asker, file, before.as_ref(), &config, options.replace)?;
    let service = ask_service(&asker, &options)?;
    let service = service.then_some(Service { units: &options.units, config: file, data: &config.data });
    // Should it fail, a password that was made is still to be shown.
    let installed = service.map(|service| service.install()).transpose();
    if let Ok(Some(unit)) = &installed {
        print(&format!("{} is installed.\n", unit.display()));
    }
    let runs = matches!(installed, Ok(Some(_))) && options.units == Path::new(machine::UNITS);
    print(&told(file, &config, made, runs));
    for warning in warnings {
        print(&format!("Warning: {warning}.\n"));
    }
    installed.context("the file is written, the service is not installed")?;
    Ok(())
}

/// What the file says that is there already.
fn existing(file: &Path) -> Result<Option<Config>, Refused> {
    if !file.exists() {
        return Ok(None);
    }
    let all = config::load(file)?;
    if all.dispatcher.is_some() || all.recording.is_some() || all.management.is_some() {
        return Err(Refused::Unfit(format!(
            "{} is for other roles, too, and would lose them: edit it, or give another file with --config",
            file.display()
        )));
    }
    Ok(all.tunnel)
}

fn take<T>(into: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *into = given;
    }
}

/// Whether user and password are asked for, and which; `true` if the password was made here.
fn ask_credentials(asker: &Asker, options: &mut Options, config: &mut Config) -> Result<bool, Refused> {
    let given = match (options.credentials, options.no_credentials) {
        (true, _) => Some("yes"),
        (_, true) => Some("no"),
        _ => None,
    };
    let question = Question {
        title: "Ask the VMS for user and password?",
        flag: "--credentials",
        explanation: &format!(
            "no: whoever reaches {} registers, moves and looks through every device without a password.",
            config.internal
        ),
        default: Some(if config.vms.credentials { "yes" } else { "no" }.to_owned()),
    };
    config.vms.credentials = asker.ask(&question, given.map(str::to_owned), ask::yes_or_no)?;
    for warning in config.vms.warnings(config.internal) {
        say(&format!("  Warning: {warning}."));
    }
    let gateway = &config.gateway;
    let for_players = gateway.users.is_empty() && (!gateway.rtsp.is_empty() || !gateway.rtsps.is_empty());
    let given = options.user.is_some() || options.password_file.is_some();
    if !config.vms.credentials && !for_players && !given {
        return Ok(false);
    }
    let (whose, signs_in) = match config.vms.credentials {
        true => ("the internal address", "The VMS signs in with it."),
        false => ("the RTSP gateway", "Players sign in with it."),
    };
    let user = Question {
        title: &format!("User of {whose}"),
        flag: "--user",
        explanation: signs_in,
        default: Some(config.user.clone()),
    };
    config.user = asker.ask(&user, options.user.take(), |text| {
        anyhow::ensure!(!text.is_empty() && !text.contains(':'), "a name without a colon is wanted");
        Ok(text.to_owned())
    })?;
    let keep = !config.password.is_empty();
    let question = Question {
        title: &format!("Password of {whose}"),
        flag: "--password-file",
        explanation: "Whoever has it reaches every device. Empty for the one that is suggested.",
        default: Some(if keep { "as it is" } else { "a new one, shown at the end" }.to_owned()),
    };
    let given = match &options.password_file {
        Some(file) => {
            let given = secret(file, "the password")?;
            setup::check_password(&given)
                .map_err(|error| Refused::Unfit(format!("--password-file: {error:#}")))?;
            Some(given)
        }
        None => loop {
            match asker.ask_secret(&question)? {
                None => break None,
                Some(given) => match setup::check_password(&given) {
                    Ok(()) => break Some(given),
                    Err(error) => say(&format!("  No: {error:#}.")),
                },
            }
        },
    };
    let made = given.is_none() && !keep;
    take(&mut config.password, given.or_else(|| made.then(|| password::generate(PASSWORD_LENGTH))));
    Ok(made)
}

/// The dispatcher and the account there; what cannot be told now, as warnings.
fn ask_dispatcher(
    asker: &Asker,
    options: &mut Options,
    config: &mut Config,
    runtime: &tokio::runtime::Runtime,
) -> Result<Option<String>, Refused> {
    let known = !config.dispatcher.account.is_empty();
    let dispatcher = &mut config.dispatcher;
    let question = Question {
        title: "Dispatcher",
        flag: "--dispatcher",
        explanation: "HOST:PORT where tunnel servers register devices at the dispatcher.",
        default: known.then(|| dispatcher.address.clone()),
    };
    dispatcher.address = asker.ask(&question, options.dispatcher.take(), |text| {
        let bare = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        anyhow::ensure!(
            !bare.is_empty() && !bare.contains("://") && !bare.contains('/'),
            "HOST:PORT is wanted"
        );
        Ok(format!("https://{}", with_port(bare, DISPATCHER_PORT)))
    })?;
    let question = Question {
        title: "CA of the dispatcher",
        flag: "--dispatcher-ca",
        explanation: "A file: dispatcher-ca.pem, from whoever runs it. It goes into the configuration.\n\
             `web` where it has a certificate of the public web.",
        default: known.then(|| "as it is".to_owned()),
    };
    let kept = dispatcher.trust_anchor.clone();
    dispatcher.trust_anchor = asker.ask(&question, options.dispatcher_ca.take(), |text| match text {
        "web" => Ok(String::new()),
        "as it is" => Ok(kept.clone()),
        file => {
            let pem = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            homing_base::tls::client_config(Some(&pem)).with_context(|| file.to_owned())?;
            Ok(pem)
        }
    })?;
    loop {
        let account = Question {
            title: "Dispatcher account",
            flag: "--account",
            explanation: "Who runs the dispatcher gives it out: homing dispatcher account add NAME.",
            default: known.then(|| dispatcher.account.clone()),
        };
        dispatcher.account = asker.ask(&account, options.account.take(), |text| {
            anyhow::ensure!(!text.is_empty() && !text.contains(':'), "a name without a colon is wanted");
            Ok(text.to_owned())
        })?;
        let from_file = options.account_password_file.take();
        let question = Question {
            title: "Password of that account",
            flag: "--account-password-file",
            explanation: "As it was printed when the account was made.",
            default: known.then(|| "as it is".to_owned()),
        };
        let given = match &from_file {
            Some(file) => Some(secret(file, "the account's password")?),
            None => asker.ask_secret(&question)?,
        };
        take(&mut dispatcher.password, given);
        if dispatcher.password.is_empty() {
            return Err(Refused::Usage(
                "--account-password-file is wanted: nothing stands for it".to_owned(),
            ));
        }
        match runtime.block_on(setup::try_dispatcher(dispatcher)) {
            Ok(doubt) => {
                let doubt = doubt.map(|doubt| format!("the dispatcher could not be asked: {doubt}"));
                doubt.iter().for_each(|doubt| say(&format!("  Warning: {doubt}.")));
                return Ok(doubt);
            }
            Err(error) if asker.silent || from_file.is_some() => {
                return Err(Refused::Unfit(format!("--account {}: {error:#}", dispatcher.account)));
            }
            Err(error) => say(&format!("  No: {error:#}.")),
        }
    }
}

fn secret(file: &Path, what: &str) -> anyhow::Result<Secret> {
    if file == Path::new("-") { line(what) } else { read_secret(file) }
}

/// Writes the file, if that is new or may be replaced.
fn write(
    asker: &Asker,
    file: &Path,
    before: Option<&Config>,
    config: &Config,
    replace: bool,
) -> Result<(), Refused> {
    if let Some(before) = before {
        let differences = file::differences(before, config)?;
        if differences.is_empty() {
            print(&format!("{} says all this already.\n", file.display()));
            return Ok(());
        }
        let list = differences.join("\n  ");
        if !replace {
            let text = format!(
                "In {}:\n{}\nThe present file is kept as FILE.before.",
                file.display(),
                differences.join("\n")
            );
            if !asker.confirm("Replace the configuration file?", &text, false)? {
                return Err(Refused::Unfit(format!(
                    "{} is left as it is (--replace replaces it). It would change:\n  {list}",
                    file.display()
                )));
            }
        }
    } else if file.exists() {
        return Err(Refused::Unfit(format!(
            "{} is there and has no [tunnel]: give another file with --config",
            file.display()
        )));
    }
    let kept = file::write(file, &file::text(config)?)?;
    print(&format!("{} is written.\n", file.display()));
    if let Some(kept) = kept {
        print(&format!("The one before is {}.\n", kept.display()));
    }
    Ok(())
}

fn ask_service(asker: &Asker, options: &Options) -> Result<bool, Refused> {
    if options.service
        || options.no_service
        || !(machine::has_systemd() || options.units != Path::new(machine::UNITS))
    {
        return Ok(options.service);
    }
    asker.confirm(
        "Install the service?",
        &format!(
            "{}/homing@.service, started now and at every start of this machine, as the user homing.",
            options.units.display()
        ),
        true,
    )
}

/// What is left to do, and where.
fn told(file: &Path, config: &Config, made: bool, runs: bool) -> String {
    let mut text = String::new();
    if made {
        text.push_str(&format!("The password of {} is {}\n", config.user, config.password.expose()));
    }
    text.push_str(
        "\nIn the firewall between the Internet and this machine (docs/network.md has ready rules):\n",
    );
    for public in &config.public {
        text.push_str(&format!("  forward TCP {public} to {}\n", config.external));
    }
    text.push_str(&format!("  let this machine out to {}\n", config.dispatcher.address));
    text.push_str("Between the surveillance network and this machine:\n");
    let gateway = [("rtsp", &config.gateway.rtsp), ("rtsps", &config.gateway.rtsps)];
    let gateway: Vec<(&str, SocketAddr)> =
        gateway.into_iter().filter_map(|(scheme, address)| Some((scheme, address.parse().ok()?))).collect();
    for address in [config.internal].into_iter().chain(gateway.iter().map(|(_, address)| *address)) {
        text.push_str(&format!("  let the VMS in to TCP {address}\n"));
    }
    for (scheme, address) in gateway {
        text.push_str(&format!("  players watch {scheme}://{}/SERIAL\n", called(address, config)));
    }
    let scheme = if config.internal.ip().is_loopback() { "http" } else { "https" };
    let inside = format!("{scheme}://{}", called(config.internal, config));
    let trust = match config.internal.ip().is_loopback() {
        true => String::new(),
        false => format!("  trusted by {}\n", config.data.join("tunnel-ca.pem").display()),
    };
    let user = match config.vms.credentials {
        true => format!("user {:?} and its password", config.user),
        false => "without user and password".to_owned(),
    };
    text.push_str(&format!(
        "On the management server's page, Remote connect services, add a tunnel server:\n  name {:?}, internal address \
         {inside}, {user}\n{trust}",
        config.name
    ));
    if config.certificate.as_os_str().is_empty() {
        let ca = config.data.join("tunnel-ca.pem");
        text.push_str(&format!(
            "Devices are told to trust the private CA by themselves ({}).\n",
            ca.display()
        ));
    }
    if runs {
        text.push_str("It runs: journalctl -u homing@tunnel\n");
    } else {
        text.push_str(&format!("To start it: homing tunnel --config {}\n", file.display()));
    }
    text
}

/// `HOST:PORT` by which the VMS calls an address of this machine.
fn called(address: SocketAddr, config: &Config) -> String {
    let known = [address.ip(), config.internal.ip()].into_iter().find(|ip| !ip.is_unspecified());
    let known = known.map(|ip| ip.to_string()).or_else(|| config.vms.names.first().cloned());
    with_port(&known.unwrap_or("ADDRESS-OF-THIS-MACHINE".to_owned()), address.port())
}
