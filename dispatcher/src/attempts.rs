//! Wrong secrets: counted for the operator, and paid for with time (steps 2, 4 and 5).
//!
//! An OAK has 48 bits. It can be guessed online in three ways, and each is limited by what a guesser cannot have more
//! of at will:
//!
//! | way | one guess costs | limited by |
//! |---|---|---|
//! | an account registers a listed device with a guess and is told | a counted mistake | `OAKS_BY_ACCOUNT`, per account |
//! | an account registers a device that waits and has given its proof | a registration, and a derivation of ours | registrations a minute, `DERIVATIONS_AT_ONCE` |
//! | a key that claims the serial number proves a guess, to be taken for the device | a connection, and derivations of ours | `PROOFS_BY_NETWORK`, `DERIVATIONS_AT_ONCE` |
//!
//! Many serial numbers, accounts and networks at once are taken into account by the test below, which does the
//! arithmetic: more than a hundred years for the best of all ways together. A key derivation takes milliseconds
//! whatever one pays for a machine; all devices of a dispatcher wait for the same `DERIVATIONS_AT_ONCE`.
//!
//! What is slowed is who guesses, never what is guessed: if a serial number or an account's name were slowed, anybody
//! could keep its owner out. These are counted and shown.
//!
//! Invariant: a mistake with an OAK is on disk before it is answered, so that a restart forgives nothing. Passwords of
//! accounts have 139 bits and proofs cost derivations in any case: their counts are written within seconds.

use crate::metrics::Metrics;
use anyhow::Context;
use homing_base::throttle::Tolerance;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::SqlitePool;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::Path,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// OAKs from one account for one device after the first: typing errors are free, guessing is hopeless.
const OAKS_BY_ACCOUNT_AND_DEVICE: Tolerance =
    Tolerance { free: 4, first: Duration::from_secs(10), longest: Duration::from_secs(3600) };

/// Wrong and corrected OAKs from one account: so many may be in a table of thousands.
const OAKS_BY_ACCOUNT: Tolerance =
    Tolerance { free: 200, first: Duration::from_secs(10), longest: Duration::from_secs(3600) };

/// The same from one network: several accounts of one integrator.
const OAKS_BY_NETWORK: Tolerance =
    Tolerance { free: 500, first: Duration::from_secs(1), longest: Duration::from_secs(600) };

/// Tries of devices from one network that ended without a proof: mistyped OAKs of a whole site are free, guessing is
/// not, nor is making the dispatcher work.
const PROOFS_BY_NETWORK: Tolerance =
    Tolerance { free: 20, first: Duration::from_secs(1), longest: Duration::from_secs(30) };

/// Passwords from one network, whichever accounts they are for; see also the gate.
const PASSWORDS_BY_NETWORK: Tolerance =
    Tolerance { free: 50, first: Duration::from_secs(1), longest: Duration::from_secs(60) };

/// What is only counted is counted from zero after this long without any.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Entries of one kind. When it is full the one that has been quiet for longest is forgotten.
const REMEMBERED: usize = 10_000;

/// How often what nobody waits for is written.
pub(crate) const WRITTEN_EVERY: Duration = Duration::from_secs(5);

/// What was wrong, and by whom or for what it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    OakByAccount,
    OakByAccountAndDevice,
    OakByNetwork,
    OakForDevice,
    PasswordByNetwork,
    PasswordForAccount,
    ProofByNetwork,
    ProofForDevice,
}

impl What {
    const ALL: [What; 8] = [
        What::OakByAccount,
        What::OakByAccountAndDevice,
        What::OakByNetwork,
        What::OakForDevice,
        What::PasswordByNetwork,
        What::PasswordForAccount,
        What::ProofByNetwork,
        What::ProofForDevice,
    ];

    fn word(self) -> &'static str {
        match self {
            What::OakByAccount => "oak-by-account",
            What::OakByAccountAndDevice => "oak-by-account-and-device",
            What::OakByNetwork => "oak-by-network",
            What::OakForDevice => "oak-for-device",
            What::PasswordByNetwork => "password-by-network",
            What::PasswordForAccount => "password-for-account",
            What::ProofByNetwork => "proof-by-network",
            What::ProofForDevice => "proof-for-device",
        }
    }

    /// None: counted, and not slowed.
    fn tolerance(self) -> Option<Tolerance> {
        match self {
            What::OakByAccount => Some(OAKS_BY_ACCOUNT),
            What::OakByAccountAndDevice => Some(OAKS_BY_ACCOUNT_AND_DEVICE),
            What::OakByNetwork => Some(OAKS_BY_NETWORK),
            What::PasswordByNetwork => Some(PASSWORDS_BY_NETWORK),
            What::ProofByNetwork => Some(PROOFS_BY_NETWORK),
            What::OakForDevice | What::PasswordForAccount | What::ProofForDevice => None,
        }
    }

    fn forgotten_after(self) -> Duration {
        self.tolerance().map_or(FORGOTTEN_AFTER, |tolerance| tolerance.longest * 4)
    }

    fn pause(self, count: u32) -> Duration {
        self.tolerance().map_or(Duration::ZERO, |tolerance| tolerance.pause(count))
    }
}

impl FromStr for What {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        What::ALL.into_iter().find(|what| what.word() == word).ok_or(())
    }
}

/// Wrong secrets of one kind, as the operator sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Attempts {
    /// Which secret, and by whom or for what it is counted, as a word for programs: `oak-by-account`.
    pub what: String,
    /// The account, serial number or network (an IPv4 address, or the first of an IPv6 /64).
    pub who: String,
    /// How often, without a long pause in between.
    pub count: u32,
    /// The last time.
    #[schema(value_type = String, format = DateTime)]
    pub last: Timestamp,
    /// Seconds after the last time during which nothing is looked at; 0: not slowed.
    pub slowed_s: u64,
}

/// A line for people.
impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Attempts { what, who, count, last, slowed_s } = self;
        let last = last.strftime("%Y-%m-%dT%H:%M:%SZ");
        write!(f, "{count:>8}  {last}  {what:<26} {who:<40}")?;
        if *slowed_s > 0 { write!(f, " slowed by {slowed_s} s") } else { Ok(()) }
    }
}

/// What was counted lately, greatest first; for commands beside the dispatcher, which writes it within seconds.
///
/// # Errors
/// When the data folder cannot be used.
pub async fn list(data: &Path) -> anyhow::Result<Vec<Attempts>> {
    let pool = crate::store::open_database(data).await?;
    let listed = read(&pool).await;
    pool.close().await;
    listed
}

async fn read(pool: &SqlitePool) -> anyhow::Result<Vec<Attempts>> {
    let rows: Vec<(String, String, u32, String)> =
        sqlx::query_as("SELECT what, who, count, last FROM attempt ORDER BY count DESC, what, who")
            .fetch_all(pool)
            .await
            .context("attempts")?;
    rows.into_iter()
        .map(|(what, who, count, last)| {
            let last = last.parse().context("time in the database")?;
            let slowed_s = what.parse::<What>().map_or(0, |what| what.pause(count).as_secs());
            Ok(Attempts { what, who, count, last, slowed_s })
        })
        .collect()
}

struct Tally {
    count: u32,
    /// By the clock that nobody can set.
    last: Instant,
    /// By the clock that outlives the process.
    at: Timestamp,
    is_written: bool,
}

/// Counts; one for the process.
pub(crate) struct Counted {
    pool: SqlitePool,
    metrics: Metrics,
    tallies: Mutex<BTreeMap<What, HashMap<String, Tally>>>,
}

impl Counted {
    /// Goes on where the last process ended.
    pub async fn open(pool: SqlitePool, metrics: Metrics) -> anyhow::Result<Self> {
        let (now, clock) = (Timestamp::now(), Instant::now());
        let mut tallies: BTreeMap<What, HashMap<String, Tally>> = BTreeMap::new();
        for Attempts { what, who, count, last: at, .. } in read(&pool).await? {
            let Ok(what) = what.parse() else { continue };
            // A clock that was set back makes nobody wait for longer than they had to.
            let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
            let last = clock.checked_sub(age).unwrap_or(clock);
            tallies.entry(what).or_default().insert(who, Tally { count, last, at, is_written: true });
        }
        Ok(Counted { pool, metrics, tallies: Mutex::new(tallies) })
    }

    /// How long until this one is looked at again; zero: now.
    pub fn wait(&self, what: What, who: &str) -> Duration {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tally) = tallies.get(&what).and_then(|of| of.get(who)) else { return Duration::ZERO };
        what.pause(tally.count).saturating_sub(tally.last.elapsed())
    }

    /// It was wrong.
    pub fn handle_wrong(&self, what: What, who: &str) {
        let now = Instant::now();
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let of = tallies.entry(what).or_default();
        if of.len() >= REMEMBERED && !of.contains_key(who) {
            let quietest = of.iter().min_by_key(|(_, tally)| tally.last).map(|(who, _)| who.clone());
            quietest.and_then(|quietest| of.remove(&quietest));
        }
        let fresh = || Tally { count: 0, last: now, at: Timestamp::now(), is_written: false };
        let tally = of.entry(who.to_owned()).or_insert_with(fresh);
        if now.saturating_duration_since(tally.last) > what.forgotten_after() {
            tally.count = 0;
        }
        *tally = Tally { count: tally.count.saturating_add(1), ..fresh() };
        let (count, slowed_s) = (tally.count, what.pause(tally.count).as_secs());
        drop(tallies);
        self.metrics.wrong(what.word());
        // At 8, 16, 32 and so on: who goes on fills no log.
        if count >= 8 && count.is_power_of_two() {
            tracing::warn!(what = what.word(), who, count, slowed_s, "many wrong secrets");
        }
    }

    /// It was right: what came before is forgiven.
    pub fn handle_right(&self, what: What, who: &str) {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tally) = tallies.get_mut(&what).and_then(|of| of.get_mut(who)) {
            (tally.count, tally.is_written) = (0, false);
        }
    }

    /// Writes what has changed.
    pub async fn write(&self) -> anyhow::Result<()> {
        let mut changed = Vec::new();
        {
            let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
            for (what, of) in tallies.iter_mut() {
                for (who, tally) in of.iter_mut().filter(|(_, tally)| {
                    !tally.is_written || (tally.count > 0 && tally.last.elapsed() > what.forgotten_after())
                }) {
                    if tally.last.elapsed() > what.forgotten_after() {
                        tally.count = 0;
                    }
                    tally.is_written = true;
                    changed.push((*what, who.clone(), tally.count, tally.at));
                }
                of.retain(|_, tally| tally.count > 0);
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let kinds: BTreeSet<What> = changed.iter().map(|(what, ..)| *what).collect();
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await.context("attempts")?;
        for (what, who, count, at) in changed {
            let query = match count {
                0 => sqlx::query("DELETE FROM attempt WHERE what = $1 AND who = $2"),
                _ => sqlx::query(
                    "INSERT OR REPLACE INTO attempt (what, who, count, last) VALUES ($1, $2, $3, $4)",
                ),
            };
            let query = query.bind(what.word()).bind(who);
            let query = if count > 0 { query.bind(count).bind(at.to_string()) } else { query };
            query.execute(&mut *change).await.context("attempts")?;
        }
        // Those that memory has no room for.
        for what in kinds {
            let quiet = "DELETE FROM attempt WHERE what = $1 AND who IN (SELECT who FROM attempt WHERE what = $1 \
                         ORDER BY last DESC LIMIT -1 OFFSET $2)";
            let quiet = sqlx::query(quiet).bind(what.word()).bind(REMEMBERED as i64);
            quiet.execute(&mut *change).await.context("attempts")?;
        }
        change.commit().await.context("attempts")
    }

    /// What was counted, greatest first.
    pub async fn list(&self) -> anyhow::Result<Vec<Attempts>> {
        self.write().await?;
        read(&self.pool).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        claims::SIDE_BY_SIDE,
        config::Config,
        dispatch::{DERIVATIONS_AT_ONCE, derive},
        store,
    };
    use homing_protocol::{Oak, SerialNumber};

    const YEAR_S: f64 = 365.25 * 24.0 * 3600.0;

    /// What a guesser gets out of a tolerance, a year: by going on at the longest pause, or by so many guesses at a
    /// time that it pays to stay away until they are forgotten.
    fn guesses_a_year(tolerance: Tolerance) -> f64 {
        let longest = tolerance.longest.as_secs_f64();
        let bursts = (1..=tolerance.free + 64).map(|guesses| {
            let pauses: f64 = (1..guesses).map(|count| tolerance.pause(count).as_secs_f64()).sum();
            f64::from(guesses) / (pauses + 4.0 * longest)
        });
        bursts.fold(1.0 / longest, f64::max) * YEAR_S
    }

    /// Goal: whoever has a thousand accounts, a hundred thousand networks and as many serial numbers as it likes needs
    /// more than a hundred years to hit one OAK in expectation, all ways at once.
    #[tokio::test]
    async fn guessing_a_48_bit_oak_online_takes_longer_than_a_device_lives() {
        const ACCOUNTS: f64 = 1_000.0;
        const NETWORKS: f64 = 100_000.0;
        /// 8 MiB in three passes, on the fastest machine that this may run on.
        const DERIVATION_S: f64 = 0.002;
        let began = std::time::Instant::now();
        derive(SerialNumber::new([0, 1, 2, 3, 4, 5]), Oak::new([0; 6])).await.unwrap();
        assert!(began.elapsed().as_secs_f64() > DERIVATION_S);

        let derivations = DERIVATIONS_AT_ONCE as f64 / DERIVATION_S * YEAR_S;
        let told_by_list = (ACCOUNTS * guesses_a_year(OAKS_BY_ACCOUNT)).min(
            // The networks alone would not do.
            NETWORKS * guesses_a_year(OAKS_BY_NETWORK),
        );
        let registrations = f64::from(Config::default().registrations_per_minute) * 60.0 * 24.0 * 365.25;
        let by_waiting_devices = (ACCOUNTS * registrations).min(derivations);
        let by_keys = (NETWORKS * guesses_a_year(PROOFS_BY_NETWORK) * SIDE_BY_SIDE as f64).min(derivations);
        // Both share the derivations; counted twice, to be safe.
        let guesses = told_by_list + by_waiting_devices + by_keys;
        let years = 2f64.powi(47) / guesses;
        assert!(years > 100.0, "{years} years: {told_by_list} {by_waiting_devices} {by_keys}");
        // One account and one device, as it mostly is.
        let alone = 2f64.powi(47) / guesses_a_year(OAKS_BY_ACCOUNT_AND_DEVICE);
        assert!(alone > 1e9, "{alone} years");
    }

    /// Goal: a restart forgives nothing, nor does a clock that was set back make anybody wait for ever; what is quiet
    /// for long, or right, is forgotten on disk, too.
    #[tokio::test]
    async fn counts_outlive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let pool = store::open_database(folder.path()).await.unwrap();
        let open = async || Counted::open(pool.clone(), Metrics::default()).await.unwrap();
        let (what, who) = (What::OakByAccountAndDevice, "shop 00408C702009");
        let counted = open().await;
        for _ in 0..6 {
            counted.handle_wrong(what, who);
            counted.handle_wrong(What::OakForDevice, "00408C702009");
        }
        counted.write().await.unwrap();
        assert_eq!(counted.wait(What::OakForDevice, "00408C702009"), Duration::ZERO, "counted, not slowed");

        let counted = open().await;
        let wait = counted.wait(what, who);
        assert!(wait > Duration::from_secs(18) && wait <= Duration::from_secs(20), "{wait:?}");
        let listed = list(folder.path()).await.unwrap();
        assert_eq!((listed[0].count, listed[0].who.as_str(), listed[0].slowed_s), (6, who, 20));
        assert_eq!(listed.len(), 2);

        let set = async |last: &str| {
            sqlx::query("UPDATE attempt SET last = $1").bind(last).execute(&pool).await.unwrap();
        };
        set("2100-01-01T00:00:00Z").await;
        let wait = open().await.wait(what, who);
        assert!(wait > Duration::from_secs(18) && wait <= Duration::from_secs(20), "{wait:?}");
        set("2020-01-01T00:00:00Z").await;
        let counted = open().await;
        assert_eq!(counted.wait(what, who), Duration::ZERO);
        counted.write().await.unwrap();
        assert_eq!(list(folder.path()).await.unwrap(), [], "quiet for long");

        counted.handle_wrong(what, who);
        counted.write().await.unwrap();
        counted.handle_right(what, who);
        counted.write().await.unwrap();
        assert_eq!(list(folder.path()).await.unwrap(), [], "right");
    }

    #[test]
    fn memory_is_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let pool = store::open_database(folder.path()).await.unwrap();
            let counted = Counted::open(pool, Metrics::default()).await.unwrap();
            for number in 0..REMEMBERED + 50 {
                counted.handle_wrong(What::ProofForDevice, &number.to_string());
            }
            counted.write().await.unwrap();
            assert_eq!(counted.tallies.lock().unwrap()[&What::ProofForDevice].len(), REMEMBERED);
            assert_eq!(counted.list().await.unwrap().len(), REMEMBERED);
        });
    }
}
