//! SIGHUP and SIGTERM at a real process with a real file: what an administrator sees in the log, and what holds on.

use crate::harness::{Folder, Http, Process, homing, seconds};
use rustix::process::{Pid, Signal, kill_process};
use std::{fs, io::Read, net::TcpStream, process::Command};

const PASSWORD: &str = "of-the-internal-address";
const ANOTHER: &str = "another-internal-password";

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn hang_up(process: &Process) {
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
}

/// Goal: an administrator edits the file and reloads: what may change does, while a connection stands; what may not is
/// named; a mistake is named and changes nothing; and in the end it stops at once, as nobody uses it.
#[test]
fn a_reload_changes_what_may_change_and_says_what_may_not() {
    let folder = Folder::new();
    let (external, internal) = (free_port(), free_port());
    let file = folder.join("homing.toml");
    let write = |password: &str, more: &str| {
        let text = format!(
            "[log]\nfilter = \"info\"\n[tunnel]\nexternal = \"127.0.0.1:{external}\"\n\
             internal = \"127.0.0.1:{internal}\"\npassword = \"{password}\"\ndata = {:?}\n{more}\n\
             [tunnel.dispatcher]\naddress = \"https://127.0.0.1:9\"\naccount = \"a\"\npassword = \"b\"\n",
            folder.join("tunnel")
        );
        fs::write(&file, text).unwrap();
    };
    write(PASSWORD, "");
    let mut command = Command::new(homing());
    let mut tunnel = Process::spawn("tunnel", command.args(["tunnel", "--config"]).arg(&file));
    tunnel.wait_for_line("tunnel server runs", seconds(20));
    let status = |password: &str| {
        let http = Http::new(&format!("http://127.0.0.1:{internal}")).basic("vms", password);
        http.request("GET", "/api/v1/devices", None).unwrap().status
    };
    assert_eq!(status(PASSWORD), 200);
    // A device that is about to speak.
    let mut standing = TcpStream::connect(("127.0.0.1", external)).unwrap();

    write(ANOTHER, "name = \"renamed\"");
    hang_up(&tunnel);
    let line = tunnel.wait_for_line("the configuration was read again", seconds(20));
    assert!(line.contains("tunnel.password"), "{line}");
    let line = tunnel.wait_for_line("needs a restart", seconds(20));
    assert!(line.contains("tunnel.name"), "{line}");
    assert_eq!((status(ANOTHER), status(PASSWORD)), (200, 401));

    tunnel.announce_error("the configuration is not taken over");
    write("a-third-internal-password", "externl = \"x\"");
    hang_up(&tunnel);
    let line = tunnel.wait_for_line("the configuration is not taken over", seconds(20));
    assert!(line.contains("did you mean") && !line.contains("a-third"), "{line}");
    assert_eq!(status(ANOTHER), 200);

    standing.set_read_timeout(Some(seconds(1))).unwrap();
    let held = standing.read(&mut [0]).unwrap_err().kind();
    assert_eq!(held, std::io::ErrorKind::WouldBlock, "the connection stands");
    assert!(tunnel.terminate(seconds(5)).success());
    let ended = standing.read(&mut [0]);
    assert!(!matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{ended:?}");
}
