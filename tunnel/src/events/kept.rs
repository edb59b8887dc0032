//! Events as they are kept: there may be tens of thousands, so each is small.
//!
//! What seldom changes about a device is shared by all its events between which it has not, and what went wrong is written
//! down once. An event of a device that goes and comes costs 450 bytes so, instead of 950.
//!
//! Invariant: what is unpacked is what was packed, field by field; a field that [`Device`] gets is missed here by the
//! compiler. Of what `devices.rs` shows, `peer` and `rtt_ms` are the first uplink's.

use super::Event;
use homing_protocol::{
    SerialNumber, Step,
    api::{
        ProblemDetail,
        dispatcher::Contested,
        tunnel::{Access, Device, Moving, PastProblem, RelayState, Site, Uplink},
    },
};
use jiff::Timestamp;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// The newest events.
#[derive(Debug)]
pub(super) struct Kept {
    limit: usize,
    events: VecDeque<Packed>,
    /// Of the last event of each device that is registered.
    last: HashMap<SerialNumber, Last>,
}

#[derive(Debug)]
enum Packed {
    Device(Box<Change>),
    Removed(SerialNumber),
    Site(Arc<Site>),
}

/// What one event shares with the next of the same device.
#[derive(Clone, Debug)]
struct Last {
    entered: Arc<Entered>,
    problem: Option<Arc<PastProblem>>,
}

/// What seldom changes about a device.
#[derive(Debug, PartialEq)]
struct Entered {
    serial: SerialNumber,
    name: String,
    description: String,
    site: Option<String>,
    user: String,
    moving: Option<Box<Moving>>,
    contested: Option<Contested>,
    own_password: bool,
    access: Access,
}

/// A device at one event.
#[derive(Debug)]
struct Change {
    shared: Last,
    step: Step,
    relay: RelayState,
    connected: bool,
    since: Option<Timestamp>,
    /// In, out.
    bytes: (u64, u64),
    bps: (u64, u64),
    uplinks: Box<[Uplink]>,
    problem: Now,
}

/// What is wrong with a device.
#[derive(Debug)]
enum Now {
    Nothing,
    /// What went wrong last.
    Still,
    Another(Box<ProblemDetail>),
}

impl Kept {
    pub fn new(limit: usize) -> Self {
        Kept { limit, events: VecDeque::new(), last: HashMap::new() }
    }

    /// From now on so many are kept.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        let beyond = self.events.len().saturating_sub(limit);
        self.events.drain(..beyond);
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// One that has happened, where the oldest that is kept is 0.
    pub fn get(&self, at: usize) -> Option<Event> {
        Some(match self.events.get(at)? {
            Packed::Device(change) => Event::Device(Arc::new(change.unpack())),
            Packed::Removed(serial) => Event::Removed(*serial),
            Packed::Site(site) => Event::Site(Arc::clone(site)),
        })
    }

    pub fn push(&mut self, event: Event) {
        let packed = match event {
            Event::Device(device) => {
                let device = Arc::unwrap_or_clone(device);
                let serial = device.serial;
                let change = Change::pack(device, self.last.get(&serial));
                self.last.insert(serial, change.shared.clone());
                Packed::Device(Box::new(change))
            }
            Event::Removed(serial) => {
                self.last.remove(&serial);
                Packed::Removed(serial)
            }
            Event::Site(site) => Packed::Site(site),
        };
        if self.events.len() >= self.limit {
            self.events.pop_front();
        }
        self.events.push_back(packed);
    }
}

impl Change {
    fn pack(device: Device, last: Option<&Last>) -> Self {
        let Device {
            serial,
            name,
            description,
            site,
            user,
            step,
            relay,
            connected,
            since,
            peer: _,
            rtt_ms: _,
            bytes_in,
            bytes_out,
            bps_in,
            bps_out,
            uplinks,
            problem,
            moving,
            contested,
            own_password,
            access,
            last_problem,
        } = device;
        let moving = moving.map(Box::new);
        let entered =
            Entered { serial, name, description, site, user, moving, contested, own_password, access };
        let same = last.map(|last| &last.entered).filter(|last| ***last == entered);
        let entered = same.map_or_else(|| Arc::new(entered), Arc::clone);
        let same = last
            .and_then(|last| last.problem.as_ref())
            .filter(|last| Some(&***last) == last_problem.as_ref());
        let last_problem = same.map(Arc::clone).or_else(|| last_problem.map(Arc::new));
        let problem = match problem {
            None => Now::Nothing,
            Some(now) if last_problem.as_ref().is_some_and(|last| last.problem == now) => Now::Still,
            Some(now) => Now::Another(Box::new(now)),
        };
        Change {
            shared: Last { entered, problem: last_problem },
            step,
            relay,
            connected,
            since,
            bytes: (bytes_in, bytes_out),
            bps: (bps_in, bps_out),
            uplinks: uplinks.into(),
            problem,
        }
    }

    fn unpack(&self) -> Device {
        let Entered { serial, name, description, site, user, moving, contested, own_password, access } =
            &*self.shared.entered;
        let last_problem = self.shared.problem.as_deref().cloned();
        let first = self.uplinks.first();
        Device {
            serial: *serial,
            name: name.clone(),
            description: description.clone(),
            site: site.clone(),
            user: user.clone(),
            step: self.step,
            relay: self.relay,
            connected: self.connected,
            since: self.since,
            peer: first.map(|uplink| uplink.peer.clone()),
            rtt_ms: first.and_then(|uplink| uplink.rtt_ms),
            bytes_in: self.bytes.0,
            bytes_out: self.bytes.1,
            bps_in: self.bps.0,
            bps_out: self.bps.1,
            uplinks: self.uplinks.to_vec(),
            problem: match &self.problem {
                Now::Nothing => None,
                Now::Still => last_problem.as_ref().map(|last| last.problem.clone()),
                Now::Another(problem) => Some((**problem).clone()),
            },
            moving: moving.as_deref().cloned(),
            contested: contested.clone(),
            own_password: *own_password,
            access: access.clone(),
            last_problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_protocol::api::Problem;

    /// Goal: a device comes out as it went in, in every state; and what has not changed is there once.
    #[test]
    fn what_is_kept_is_what_happened_and_small() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let uplink = |port: u16| Uplink {
            peer: format!("192.0.2.1:{port}"),
            dialled: Some("sts.example.com:8443".into()),
            since: at(5),
            rtt_ms: Some(7),
            streams: 2,
        };
        let lost = Problem::at(Step::Tunnel, "uplink-lost", "The uplink ended.").error;
        let here = Device {
            serial: "00408C702009".parse().unwrap(),
            name: "Entrance".into(),
            description: "north".into(),
            site: Some("depot".into()),
            user: "root".into(),
            step: Step::Tunnel,
            relay: RelayState::Dispatched,
            connected: true,
            since: Some(at(6)),
            peer: Some("192.0.2.1:1".into()),
            rtt_ms: Some(7),
            bytes_in: 1,
            bytes_out: 2,
            bps_in: 3,
            bps_out: 4,
            uplinks: vec![uplink(1), uplink(2)],
            problem: None,
            moving: None,
            contested: Some(Contested { attempts: 3, last: at(8) }),
            own_password: true,
            access: Access::default(),
            last_problem: None,
        };
        let past = Some(PastProblem { at: at(9), problem: lost.clone() });
        let away = Device {
            connected: false,
            peer: None,
            rtt_ms: None,
            uplinks: Vec::new(),
            problem: Some(lost),
            last_problem: past.clone(),
            ..here.clone()
        };
        let back = Device { last_problem: past, ..here.clone() };
        let other = Problem::at(Step::Tunnel, "two-devices", "Two devices.").error;
        let renamed = Device { name: "Exit".into(), problem: Some(other), ..back.clone() };
        let told = [here, away, back, renamed].map(|device| Event::Device(Arc::new(device)));
        let mut kept = Kept::new(4);
        told.iter().for_each(|event| kept.push(event.clone()));
        let unpacked: Vec<Event> = (0..4).filter_map(|at| kept.get(at)).collect();
        assert_eq!(unpacked, told);

        let changes: Vec<&Change> = kept
            .events
            .iter()
            .filter_map(|packed| match packed {
                Packed::Device(change) => Some(&**change),
                _ => None,
            })
            .collect();
        let [here, away, back, renamed] = changes[..] else { panic!("{changes:?}") };
        assert!(Arc::ptr_eq(&here.shared.entered, &back.shared.entered));
        assert!(!Arc::ptr_eq(&back.shared.entered, &renamed.shared.entered));
        assert!(matches!(away.problem, Now::Still));
        let [away, back] = [away, back].map(|change| change.shared.problem.as_ref().unwrap());
        assert!(Arc::ptr_eq(away, back));
        assert!(size_of::<Change>() <= 112, "{} bytes", size_of::<Change>());
        kept.push(Event::Removed(here.shared.entered.serial));
        assert!(kept.last.is_empty());
    }
}
