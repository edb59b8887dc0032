//! Network namespaces, one for each box of the picture, and the rules between them.
//!
//! Invariant: names hold the id of the test process, so that labs run side by side and what a killed
//! run left behind is found and removed by the next one. `Drop` fails the test when anything is left.

use super::layout::{End, Layout, PUBLIC, documented_rules};
use crate::harness::{Http, Process, output, seconds, wait_for};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

/// Begins the name of every namespace of every lab.
const PREFIX: &str = "homing-lab-";
/// Boxes of the picture, from the site inwards.
const BOXES: [&str; 8] =
    ["site", "router", "internet", "firewall1", "switch", "tunnel", "firewall2", "central"];
/// How long a lab waits for a connection that firewalls may swallow.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// The site's host: camera and agent.
pub const SITE: &str = "192.168.1.10";
/// The site's first public address.
pub const SITE_PUBLIC: &str = "203.0.113.2";
/// The same over IPv6, where it has no other.
pub const SITE_IPV6: &str = "2001:db8:51::10";
/// The site's public address after [`Lab::give_the_site_a_new_public_address`].
pub const SITE_PUBLIC_AFTERWARDS: &str = "203.0.113.77";

/// Cables outside the centre, both ends of each.
const CABLES: [[End; 2]; 3] = [
    [("site", "lan", "192.168.1.10/24"), ("router", "lan", "192.168.1.1/24")],
    [("router", "wan", "203.0.113.2/24"), ("internet", "homes", "203.0.113.1/24")],
    [("internet", "offices", "198.51.100.1/24"), ("firewall1", "wan", "198.51.100.2/24")],
];

/// Box and route, outside the centre.
const ROUTES: [(&str, &str); 3] = [
    ("site", "default via 192.168.1.1"),
    ("router", "default via 203.0.113.1"),
    ("firewall1", "default via 198.51.100.1"),
];

/// Boxes between the site and the tunnel server, their adaptors and IPv6 addresses.
const IPV6: [(&str, &str, &str); 8] = [
    ("site", "lan", "2001:db8:51::10/64"),
    ("router", "lan", "2001:db8:51::1/64"),
    ("router", "wan", "2001:db8:20::2/64"),
    ("internet", "homes", "2001:db8:20::1/64"),
    ("internet", "offices", "2001:db8:19::1/64"),
    ("firewall1", "wan", "2001:db8:19::2/64"),
    ("firewall1", "dmz", "2001:db8:d::1/64"),
    ("tunnel", "outer", "2001:db8:d::10/64"),
];

/// Box and route of IPv6. Nothing is translated, so the Internet knows the way to everybody.
const IPV6_ROUTES: [(&str, &str); 6] = [
    ("site", "default via 2001:db8:51::1"),
    ("router", "default via 2001:db8:20::1"),
    ("internet", "2001:db8:51::/64 via 2001:db8:20::2"),
    ("internet", "2001:db8:d::/64 via 2001:db8:19::2"),
    ("firewall1", "default via 2001:db8:19::1"),
    ("tunnel", "default via 2001:db8:d::1"),
];

/// Counts what the site's line carries, where it leaves its host: behind that, the kernel may have joined packets.
const LINE_RULES: &str = "
table inet line {
    counter up {}
    counter down {}
    chain leaving { type filter hook postrouting priority filter; policy accept; oifname lan counter name up; }
    chain arriving { type filter hook prerouting priority filter; policy accept; iifname lan counter name down; }
}";

/// What every home has, and a watch: whoever connects from outside is counted before anything else
/// is decided about it, and counted again where it is dropped.
const ROUTER_RULES: &str = "
table inet watch {
    counter tcp_from_outside {}
    counter other_from_outside {}
    counter dropped_from_outside {}
    chain arrivals {
        type filter hook prerouting priority mangle; policy accept;
        iifname wan tcp flags & (syn | ack) == syn counter name tcp_from_outside
        iifname wan meta l4proto != tcp ct state new counter name other_from_outside
    }
    chain input {
        type filter hook input priority filter; policy drop;
        iifname { lo, lan } accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        ct state established,related accept
        counter name dropped_from_outside
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname lan oifname wan accept
        counter name dropped_from_outside
    }
}
table ip nat {
    chain outwards {
        type nat hook postrouting priority srcnat; policy accept;
        oifname wan masquerade
    }
}";

/// The networks, until dropped.
pub struct Lab {
    /// Where its tunnel server stands.
    pub layout: Layout,
    /// Whether devices come over IPv6.
    pub ipv6: bool,
    name: String,
    /// Prints a line for every TCP connection attempt that arrives from outside at the site's router.
    capture: Option<Process>,
}

/// What arrived at the site's router from outside, unasked for, since the lab began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FromOutside {
    /// TCP connection attempts, by the router's counter.
    pub tcp: u64,
    /// TCP connection attempts, by the capture on its outer interface.
    pub captured: u64,
    /// Anything else that began there.
    pub other: u64,
    /// What the router dropped.
    pub dropped: u64,
}

impl FromOutside {
    /// What began outside, by every means of counting. (What is dropped may also be late answers of
    /// a connection that the site itself had and has forgotten.)
    pub fn begun(self) -> [u64; 3] {
        [self.tcp, self.captured, self.other]
    }
}

impl Lab {
    /// Builds the networks.
    ///
    /// # Panics
    /// When it may not (not root), with what to do about it.
    pub fn new(layout: Layout) -> Lab {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "the lab makes network namespaces and needs root: run `sudo -E cargo xtask test --only lab`, \
             or a container with CAP_NET_ADMIN and CAP_SYS_ADMIN"
        );
        remove_stale();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut lab = Lab {
            layout,
            ipv6: false,
            name: format!("{PREFIX}{}-{number}-", std::process::id()),
            capture: None,
        };
        for name in BOXES {
            ip(&format!("netns add {}{name}", lab.name));
            let settings = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.disable_ipv6=1"];
            lab.host(name).run("sysctl", &["-q", "-w", settings[0], settings[1]]);
            ip(&format!("-n {}{name} link set lo up", lab.name));
        }
        ip(&format!("-n {}switch link add bridge type bridge", lab.name));
        ip(&format!("-n {}switch link set bridge up", lab.name));
        for [(one, one_name, one_address), (other, other_name, other_address)] in
            CABLES.iter().chain(layout.cables())
        {
            let l = &lab.name;
            ip(&format!("-n {l}{one} link add {one_name} type veth peer name {other_name} netns {l}{other}"));
            for (host, name, address) in [(one, one_name, one_address), (other, other_name, other_address)] {
                match address.is_empty() {
                    true => ip(&format!("-n {l}{host} link set {name} master bridge")),
                    false => ip(&format!("-n {l}{host} address add {address} dev {name}")),
                }
                ip(&format!("-n {l}{host} link set {name} up"));
            }
        }
        // Packets of the size that a line has, so that they can be counted.
        ip(&format!("-n {}site link set lan gso_max_segs 1", lab.name));
        for (host, route) in ROUTES.iter().chain(layout.routes()) {
            ip(&format!("-n {}{host} route add {route}", lab.name));
        }
        lab.host("router").run("nft", &[ROUTER_RULES]);
        lab.site().run("nft", &[LINE_RULES]);
        for (host, first_line) in layout.rules() {
            lab.load(host, first_line);
        }
        let mut capture = lab.host("router").command("tcpdump");
        capture.args(["-i", "wan", "-Q", "in", "-n", "-l", "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"]);
        let mut capture = Process::spawn("tcpdump", &mut capture);
        capture.wait_for_line("listening on wan", seconds(10));
        lab.capture = Some(capture);
        lab
    }

    /// With two adaptors, and IPv6 from the site to the outer one, besides IPv4.
    pub fn with_ipv6() -> Lab {
        let mut lab = Lab::new(Layout::TwoAdaptors);
        lab.ipv6 = true;
        for (name, adaptor, address) in IPV6 {
            let settings = ["net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.all.forwarding=1"];
            lab.host(name).run("sysctl", &["-q", "-w", settings[0], settings[1]]);
            ip(&format!("-n {}{name} address add {address} dev {adaptor} nodad", lab.name));
        }
        for (name, route) in IPV6_ROUTES {
            ip(&format!("-n {}{name} -6 route add {route}", lab.name));
        }
        lab.load("firewall1", "# IPv6 besides IPv4");
        for (name, _, _) in IPV6 {
            wait_for("nobody else was found to have these addresses", seconds(10), || {
                let unsure = lab.host(name).run("ip", &["-6", "address", "show", "tentative"]);
                if unsure.is_empty() { Ok(()) } else { Err(unsure) }
            });
        }
        lab
    }

    /// The host in the site.
    pub fn site(&self) -> Host {
        self.host("site")
    }

    /// Anybody on the Internet.
    pub fn internet(&self) -> Host {
        self.host("internet")
    }

    /// The tunnel server's host.
    pub fn tunnel(&self) -> Host {
        self.host("tunnel")
    }

    /// The host in the surveillance network.
    pub fn central(&self) -> Host {
        self.host("central")
    }

    /// Loads a block of docs/network.md.
    pub fn load(&self, firewall: &str, first_line: &str) {
        self.load_rules(firewall, &documented_rules(first_line));
    }

    /// Loads rules of nftables.
    pub fn load_rules(&self, firewall: &str, rules: &str) {
        self.host(firewall).run("nft", &[rules]);
    }

    /// What the site's line has carried: bytes of IP packets up, and down.
    pub fn carried(&self) -> (u64, u64) {
        let site = self.site();
        (count(&site, "line", "up", 3), count(&site, "line", "down", 3))
    }

    /// Gives whoever is on the Internet a route to the inside, as if the provider were the attacker.
    pub fn betray_the_centre(&self) {
        ip(&format!("-n {}internet route replace 10.0.0.0/8 via {PUBLIC}", self.name));
    }

    fn host(&self, name: &str) -> Host {
        Host { namespace: format!("{}{name}", self.name) }
    }

    /// What came from outside, so far. Only meaningful once [`Lab::prove_the_watch_sees`] has run.
    pub fn arrivals(&self) -> FromOutside {
        let router = self.host("router");
        let seen = |name: &str| count(&router, "watch", name, 1);
        let capture = self.capture.as_ref().expect("runs as long as the lab");
        FromOutside {
            tcp: seen("tcp_from_outside"),
            captured: capture.log().iter().filter(|line| line.contains("Flags [S]")).count() as u64,
            other: seen("other_from_outside"),
            dropped: seen("dropped_from_outside"),
        }
    }

    /// Shows that a connection towards the site is seen by every means and dropped: a wall that
    /// nobody has run into proves nothing. Gives the counts to compare with at the end.
    pub fn prove_the_watch_sees(&self) -> FromOutside {
        let before = self.arrivals();
        // The router itself, and a host behind it as if there were a route.
        ip(&format!("-n {}internet route replace 192.168.1.0/24 via {SITE_PUBLIC}", self.name));
        for target in [format!("{SITE_PUBLIC}:554"), format!("{SITE}:554")] {
            let attempt = self.internet().connect(&target);
            assert!(attempt.is_err(), "somebody outside connected to {target} in the site");
        }
        ip(&format!("-n {}internet route del 192.168.1.0/24", self.name));
        let twice = |now: u64, before: u64| now >= before + 2;
        wait_for("the router's watch sees two connection attempts from outside", seconds(5), || {
            let now = self.arrivals();
            let seen = twice(now.tcp, before.tcp) && twice(now.captured, before.captured);
            // A repeated SYN may still be on its way: capture and counter must agree first.
            let settled = now.tcp == now.captured && twice(now.dropped, before.dropped);
            if seen && settled { Ok(now) } else { Err(format!("{now:?}, before {before:?}")) }
        })
    }

    /// The site's line is dead: whatever is sent over it is lost, and nobody is told.
    pub fn silence_the_site(&self) {
        let dead = "table ip dead { chain line { type filter hook forward priority -200; policy drop; }; }";
        self.host("router").run("nft", &[dead]);
    }

    /// It is repaired.
    pub fn repair_the_line(&self) {
        self.host("router").run("nft", &["delete table ip dead"]);
    }

    /// The provider gives the site another address: flows over the old one are dead from now on.
    pub fn give_the_site_a_new_public_address(&self) {
        let (router, internet) = (format!("{}router", self.name), format!("{}internet", self.name));
        ip(&format!("-n {router} address del {SITE_PUBLIC}/24 dev wan"));
        ip(&format!("-n {router} address add {SITE_PUBLIC_AFTERWARDS}/24 dev wan"));
        ip(&format!("-n {router} route replace default via 203.0.113.1"));
        // What the router remembers of its flows goes with the address that they were mapped to.
        self.host("router").run("conntrack", &["-F"]);
        ip(&format!("-n {internet} neighbour flush dev homes"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.capture = None;
        let mut left_behind = Vec::new();
        for name in BOXES {
            let namespace = format!("{}{name}", self.name);
            left_behind.extend(processes_in(&namespace).into_iter().map(|id| format!("{id} in {name}")));
            remove(&namespace);
        }
        if thread::panicking() {
            return;
        }
        assert!(left_behind.is_empty(), "processes left behind in the lab: {}", left_behind.join(", "));
        let namespaces: Vec<String> =
            namespaces().into_iter().filter(|name| name.starts_with(&self.name)).collect();
        assert!(namespaces.is_empty(), "namespaces left behind: {namespaces:?}");
    }
}

/// One box of the picture, to run things in.
#[derive(Clone)]
pub struct Host {
    namespace: String,
}

impl Host {
    /// A command that will run here.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program.as_ref());
        command
    }

    /// Starts a program here; the lab's tests call it by its file name.
    pub fn spawn(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Process {
        let name = program.as_ref().file_name().expect("a program").to_string_lossy().into_owned();
        Process::spawn(&name, self.command(program).args(arguments))
    }

    /// Runs a program here to its end and gives what it printed.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        String::from_utf8(output(self.command(program).args(arguments))).unwrap()
    }

    /// Does something in a thread that lives here; sockets made there stay here.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        let in_here = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(in_here).join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    }

    /// A connection from here; gives up soon, since firewalls answer by silence.
    pub fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let address: SocketAddr = address.parse().map_err(io::Error::other)?;
        self.inside(|| TcpStream::connect_timeout(&address, CONNECT_DEADLINE))
    }

    /// A listener here.
    pub fn listen(&self, address: &str) -> TcpListener {
        self.inside(|| TcpListener::bind(address).unwrap())
    }

    /// A client of `http://host:port` that sits here.
    pub fn http(&self, url: &str) -> Http {
        let host = self.clone();
        Http::through(url, Arc::new(move |authority| host.connect(authority)))
    }

    /// Addresses that somebody listens at here, for TCP.
    pub fn listeners(&self) -> Vec<String> {
        let lines = self.run("ss", &["--listening", "--tcp", "--numeric", "--no-header"]);
        lines.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect()
    }
}

/// The word at `place` behind the name of a counter: 1 packets, 3 bytes.
fn count(host: &Host, table: &str, name: &str, place: usize) -> u64 {
    let listing = host.run("nft", &[&format!("list counters table inet {table}")]);
    let after = listing.split(&format!("counter {name} {{")).nth(1);
    let word = after.and_then(|rest| rest.split_whitespace().nth(place));
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{name} in {listing}"))
}

fn ip(arguments: &str) {
    output(Command::new("ip").args(arguments.split(' ')));
}

fn namespaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

fn processes_in(namespace: &str) -> Vec<i32> {
    let ids = Command::new("ip").args(["netns", "pids", namespace]).output().map(|output| output.stdout);
    let ids = String::from_utf8(ids.unwrap_or_default()).unwrap_or_default();
    ids.lines().filter_map(|id| id.parse().ok()).collect()
}

/// Ends what runs there, then takes the namespace away.
fn remove(namespace: &str) {
    use rustix::process::{Pid, Signal, kill_process};
    for id in processes_in(namespace).into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(id, Signal::KILL);
    }
    let _ = Command::new("ip").args(["netns", "del", namespace]).output();
}

/// Removes the labs of test processes that no longer live (somebody killed them).
fn remove_stale() {
    for name in namespaces() {
        let id = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if !id.is_some_and(|id| Path::new("/proc").join(id).exists()) {
            remove(&name);
        }
    }
}

/// The name of a namespace as a lab of a test process with this id would call it.
#[cfg(test)]
pub(super) fn name_for(process: u32) -> String {
    format!("{PREFIX}{process}-0-site")
}
