//! Claims on the database alone; with devices: `tests/it/`.

use super::*;
use crate::{accounts, offers::OfferError, store::Entered};
use std::path::Path;

const SERIAL: SerialNumber = SerialNumber::new([0x00, 0x40, 0x8C, 0x70, 0x20, 0x09]);
const OAK: Oak = Oak::new([0x0A, 0x1B, 0x2C, 0x3D, 0x4E, 0x5F]);
const OTHER_OAK: Oak = Oak::new([0xFF, 0x1B, 0x2C, 0x3D, 0x4E, 0x5F]);
const RULES: Rules = Rules { limit: 100, listed_only: false };

fn new(oak: Oak) -> NewRegistration {
    NewRegistration {
        oak,
        user: "root".into(),
        password: "x".into(),
        servers: vec!["sts.example:443".into()],
        trust_anchor: "PEM".into(),
        voucher_key: Default::default(),
    }
}

/// A store with so many accounts.
async fn store(data: &Path, accounts: i64) -> (Store, Vec<AccountId>) {
    for number in 1..=accounts {
        accounts::create(data, &format!("a{number}")).await.unwrap();
    }
    (Store::open(data).await.unwrap(), (1..=accounts).map(AccountId).collect())
}

async fn prove(store: &Store, generation: Generation, oak: &Oak) -> Option<u64> {
    store.prove(SERIAL, generation, oak, Some(&oak.proof_key(SERIAL))).await.unwrap()
}

async fn dispatch(store: &Store, generation: Generation) {
    let entered = Entered {
        state: State::Dispatched,
        step: Step::Dispatch,
        fingerprint: Some("F1".into()),
        problem: None,
    };
    store.enter(generation, &[State::Dispatching], entered).await.unwrap().unwrap();
}

async fn state(store: &Store, account: AccountId) -> (State, Option<String>) {
    let registration = store.get(account, SERIAL).await.unwrap().unwrap();
    (registration.state, registration.problem.map(|problem| problem.code))
}

/// Goal: whoever registers first has nothing by that; the proof decides, and tells each of the others what it needs
/// to know.
#[tokio::test]
async fn step_5_the_proof_decides_between_registrations_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let (store, accounts) = store(folder.path(), 4).await;
    let [squatter, owner, twin, late] = accounts[..] else { unreachable!() };
    store.put(squatter, SERIAL, &new(OTHER_OAK), RULES).await.unwrap();
    let mine = store.put(owner, SERIAL, &new(OAK), RULES).await.unwrap();
    let too = store.put(twin, SERIAL, &new(OAK), RULES).await.unwrap();
    let jobs = store.jobs(SERIAL).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.account).collect::<Vec<_>>(), [squatter, owner, twin]);
    let contested = store.get(squatter, SERIAL).await.unwrap().unwrap().contested.unwrap();
    assert_eq!(contested.attempts, 2);
    assert_eq!(store.get(twin, SERIAL).await.unwrap().unwrap().contested.unwrap().attempts, 2);

    prove(&store, mine, &OAK).await.unwrap();
    assert_eq!(prove(&store, too, &OAK).await, None, "one claim");
    assert_eq!(state(&store, owner).await, (State::Dispatching, None));
    assert_eq!(state(&store, squatter).await, (State::Refused, Some("wrong-oak".into())));
    assert_eq!(state(&store, twin).await, (State::Refused, Some("claimed-by-another-account".into())));
    assert_eq!(store.jobs(SERIAL).await.unwrap().len(), 1);

    for attempts in 3..6 {
        let refused = store.put(late, SERIAL, &new(OAK), RULES).await.unwrap_err();
        assert!(matches!(refused, PutError::Claimed(_)), "{refused}");
        let contested = store.get(owner, SERIAL).await.unwrap().unwrap().contested.unwrap();
        assert_eq!(contested.attempts, attempts);
    }
    assert_eq!(store.get(late, SERIAL).await.unwrap(), None);
    assert!(store.delete(owner, SERIAL).await.unwrap());
    let again = store.put(late, SERIAL, &new(OAK), RULES).await.unwrap();
    assert!(again > too, "generations are never used again");
}

/// Goal: an account that registers more than it may, and one that is set back by an own newer registration.
#[tokio::test]
async fn step_2_a_registration_keeps_to_the_limit_and_replaces_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (store, accounts) = store(folder.path(), 1).await;
    let rules = Rules { limit: 1, ..RULES };
    let first = store.put(accounts[0], SERIAL, &new(OTHER_OAK), rules).await.unwrap();
    let other = SerialNumber::new([0, 1, 2, 3, 4, 5]);
    assert!(matches!(store.put(accounts[0], other, &new(OAK), rules).await, Err(PutError::Limit(1))));
    let second = store.put(accounts[0], SERIAL, &new(OAK), rules).await.unwrap();
    assert!(second > first);
    assert_eq!(
        prove(&store, first, &OTHER_OAK).await,
        None,
        "what was begun under an older one writes nothing"
    );
    prove(&store, second, &OAK).await.unwrap();
}

/// Goal: a crowd does not keep the owner out: whoever squats most gives way, and pushing others out costs time.
#[tokio::test]
async fn step_2_a_crowd_of_squatters_gives_way_to_the_owner() {
    assert_eq!(gives_way(2, &[(1, false), (1, true)]), None, "the newcomer squats more than any of them");
    assert_eq!(
        gives_way(1, &[(1, false), (3, false), (3, true)]),
        Some(2),
        "who was refuted, of those with most"
    );
    assert_eq!(gives_way(1, &[(1, false), (1, false)]), Some(0), "the oldest");

    let folder = tempfile::tempdir().unwrap();
    let (store, accounts) = store(folder.path(), SIDE_BY_SIDE as i64 + 2).await;
    let (owner, squatters) = accounts.split_last().unwrap();
    for squatter in &squatters[..SIDE_BY_SIDE] {
        store.put(*squatter, SERIAL, &new(OTHER_OAK), RULES).await.unwrap();
    }
    let mine = store.put(*owner, SERIAL, &new(OAK), RULES).await.unwrap();
    assert_eq!(store.jobs(SERIAL).await.unwrap().len(), SIDE_BY_SIDE);
    assert_eq!(state(&store, squatters[0]).await, (State::Refused, Some("contested".into())));
    for squatter in [0, 1, 2, 3, 4, 5, 8] {
        store.put(squatters[squatter], SERIAL, &new(OTHER_OAK), RULES).await.unwrap();
    }
    assert_eq!(state(&store, *owner).await.0, State::Waiting, "the owner stands");
    prove(&store, mine, &OAK).await.unwrap();
    assert_eq!(store.jobs(SERIAL).await.unwrap().len(), 1);
    for squatter in squatters {
        assert_eq!(state(&store, *squatter).await.0, State::Refused);
    }
}

/// Goal: an account pushes others out once, and then only after a while.
#[tokio::test]
async fn step_2_pushing_out_is_slowed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, accounts) = store(folder.path(), SIDE_BY_SIDE as i64 + 1).await;
    // Each pushes out the next one.
    for account in accounts.iter().chain(&accounts[..SIDE_BY_SIDE]) {
        store.put(*account, SERIAL, &new(OTHER_OAK), RULES).await.unwrap();
    }
    let again = store.put(accounts[SIDE_BY_SIDE], SERIAL, &new(OTHER_OAK), RULES).await;
    assert!(matches!(again, Err(PutError::Later(wait)) if !wait.is_zero()));
}

/// Goal: with both sides' consent the claim moves in one step; the old owner learns where to, the new owner has the
/// key at once, and its secrets go when the device has come.
#[tokio::test]
async fn step_2_an_offered_device_goes_to_whoever_registers_it_with_the_right_oak() {
    let folder = tempfile::tempdir().unwrap();
    let (store, accounts) = store(folder.path(), 3).await;
    let [alpha, beta, gamma] = accounts[..] else { unreachable!() };
    let generation = store.put(alpha, SERIAL, &new(OAK), RULES).await.unwrap();
    assert!(matches!(store.offer(alpha, SERIAL, "a2").await, Err(OfferError::Unproven)));
    prove(&store, generation, &OAK).await.unwrap();
    dispatch(&store, generation).await;
    assert!(matches!(store.offer(beta, SERIAL, "a3").await, Err(OfferError::NotRegistered)));
    store.offer(alpha, SERIAL, "nobody").await.expect("the same answer whether it exists or not");
    assert!(matches!(store.put(beta, SERIAL, &new(OAK), RULES).await, Err(PutError::Claimed(_))));

    store.offer(alpha, SERIAL, "a2").await.unwrap();
    assert!(matches!(store.put(gamma, SERIAL, &new(OAK), RULES).await, Err(PutError::Claimed(_))));
    assert!(matches!(store.put(beta, SERIAL, &new(OTHER_OAK), RULES).await, Err(PutError::WrongOak)));
    store.withdraw_offer(alpha, SERIAL).await.unwrap();
    assert!(matches!(store.put(beta, SERIAL, &new(OAK), RULES).await, Err(PutError::Claimed(_))));
    store.offer(alpha, SERIAL, "a2").await.unwrap();
    let target = NewRegistration { servers: vec!["beta.example:443".into()], ..new(OAK) };
    store.put(beta, SERIAL, &target, RULES).await.unwrap();

    let gone = store.get(alpha, SERIAL).await.unwrap().unwrap();
    assert_eq!((gone.state, gone.next.unwrap().servers), (State::Transferred, target.servers));
    let come = store.get(beta, SERIAL).await.unwrap().unwrap();
    assert_eq!((come.state, come.fingerprint.as_deref()), (State::Waiting, Some("F1")));
    assert!(store.jobs(SERIAL).await.unwrap()[0].secrets.is_some(), "until it comes");
    assert!(
        matches!(store.put(alpha, SERIAL, &new(OAK), RULES).await, Err(PutError::Claimed(_))),
        "once only"
    );

    assert!(matches!(store.arrived(beta, SERIAL, "F2").await, Err(OfferError::OtherKey)));
    assert!(matches!(store.arrived(alpha, SERIAL, "F1").await, Err(OfferError::NotRegistered)));
    assert_eq!(store.arrived(beta, SERIAL, "f1").await.unwrap().state, State::Dispatched);
    assert!(store.jobs(SERIAL).await.unwrap()[0].secrets.is_none(), "forgotten");
    assert!(store.delete(alpha, SERIAL).await.unwrap(), "acknowledged");
    assert_eq!(store.get(alpha, SERIAL).await.unwrap(), None);

    let mut told = Vec::new();
    audit::read(folder.path(), Some(SERIAL), |entry| told.push(format!("{} {}", entry.actor, entry.action)))
        .await
        .unwrap();
    let expected = "a1 registered, a1 claimed, a1 dispatched, a1 offered, a2 claim-refused, a1 offered, \
                    a3 claim-refused, a1 offer-withdrawn, a2 claim-refused, a1 offered, a2 transferred, \
                    a1 claim-refused, a2 arrived";
    assert_eq!(told.join(", "), expected);
}

/// Goal: comparing takes a while, outside of any lock; what happens meanwhile neither loses the transfer nor lets an
/// OAK pass that was compared with an older one.
#[tokio::test]
async fn step_2_an_offered_device_goes_over_whatever_happens_while_its_oak_is_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (store, accounts) = store(folder.path(), 2).await;
    let [alpha, beta] = accounts[..] else { unreachable!() };
    let generation = store.put(alpha, SERIAL, &new(OAK), RULES).await.unwrap();
    prove(&store, generation, &OAK).await.unwrap();
    dispatch(&store, generation).await;
    let put = async |compared: Option<Compared>| {
        let mut change = store.begin().await.unwrap();
        let registration = new(OAK);
        let what = (beta, SERIAL, &registration);
        let put = store.put_in(&mut change, what, RULES, compared, &mut Touched::of(beta)).await.unwrap();
        change.commit().await.unwrap();
        put
    };
    let unoffered = store.compare(beta, SERIAL, &OAK).await.unwrap();
    store.offer(alpha, SERIAL, "a2").await.unwrap();
    assert_eq!(put(unoffered).await, None, "offered meanwhile");

    let earlier = store.compare(beta, SERIAL, &OAK).await.unwrap();
    let again = store.put(alpha, SERIAL, &new(OAK), RULES).await.unwrap();
    prove(&store, again, &OAK).await.unwrap();
    assert_eq!(put(earlier).await, None, "proven again meanwhile");
    dispatch(&store, again).await;

    let compared = store.compare(beta, SERIAL, &OAK).await.unwrap();
    store.put(alpha, SERIAL, &new(OAK), RULES).await.unwrap();
    assert!(put(compared).await.is_some(), "its owner alone was there again");
    assert_eq!(state(&store, alpha).await.0, State::Transferred);
    let come = store.get(beta, SERIAL).await.unwrap().unwrap();
    assert_eq!((come.state, come.fingerprint.as_deref()), (State::Waiting, Some("F1")));
}

/// Goal: where no OAK was kept to compare with, the device's next proof decides; and offers and signposts end.
#[tokio::test]
async fn step_5_a_transfer_waits_for_a_proof_where_the_oak_is_not_known() {
    let folder = tempfile::tempdir().unwrap();
    let (store, accounts) = store(folder.path(), 3).await;
    let [alpha, beta, gamma] = accounts[..] else { unreachable!() };
    let first = store.put(alpha, SERIAL, &new(OAK), RULES).await.unwrap();
    prove(&store, first, &OAK).await.unwrap();
    dispatch(&store, first).await;
    sqlx::query("UPDATE registration SET verifier = NULL").execute(store.pool()).await.unwrap();
    store.offer(alpha, SERIAL, "a2").await.unwrap();
    let second = store.put(beta, SERIAL, &new(OAK), RULES).await.unwrap();
    assert_eq!(state(&store, alpha).await.0, State::Dispatched, "nothing has changed yet");
    let jobs = store.jobs(SERIAL).await.unwrap();
    assert_eq!(
        jobs.iter().map(|job| job.account).collect::<Vec<_>>(),
        [beta, alpha],
        "who was offered it first"
    );
    store.withdraw_offer(alpha, SERIAL).await.unwrap();
    assert_eq!(prove(&store, second, &OAK).await, None, "the owner has changed its mind");
    store.offer(alpha, SERIAL, "a2").await.unwrap();
    prove(&store, second, &OAK).await.unwrap();
    assert_eq!(state(&store, alpha).await.0, State::Transferred);
    assert_eq!(state(&store, beta).await.0, State::Dispatching);

    store.offer(beta, SERIAL, "a3").await.unwrap();
    for change in [
        "UPDATE offer SET ends = '2020-01-01T00:00:00Z'",
        "UPDATE registration SET since = '2020' WHERE \
                   state = 'transferred'",
    ] {
        sqlx::query(change).execute(store.pool()).await.unwrap();
    }
    assert!(
        matches!(store.put(gamma, SERIAL, &new(OAK), RULES).await, Err(PutError::Claimed(_))),
        "it has ended"
    );
    store.sweep().await.unwrap();
    assert_eq!(store.get(alpha, SERIAL).await.unwrap(), None, "told for long enough");
    let (offers,): (u32,) =
        sqlx::query_as("SELECT count(*) FROM offer").fetch_one(store.pool()).await.unwrap();
    assert_eq!(offers, 0);
}

/// Goal: a database of the version before is carried over: what was dispatched or listed is a claim, what was only
/// registered is not, and nothing is lost.
#[tokio::test]
async fn a_database_of_the_version_before_is_carried_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dispatcher.sqlite");
    let before = [include_str!("../schema/1.sql"), include_str!("../schema/2.sql")];
    let pool = homing_base::database::open(&path, &before).await.unwrap();
    let vault = crate::store::open_vault(folder.path(), &pool).await.unwrap();
    let secrets = Secret::new(r#"{"oak":"0A1B-2C3D-4E5F","credentials":{"user":"root","password":"x"}}"#);
    sqlx::query("INSERT INTO account (name, password, seq) VALUES ('a1', '', 4), ('a2', '', 0)")
        .execute(&pool)
        .await
        .unwrap();
    let time = "2026-01-01T00:00:00Z";
    sqlx::query(
        "INSERT INTO listed (serial, oak, model, imported) VALUES ('00408C70200C', x'00', '', '2025')",
    )
    .execute(&pool)
    .await
    .unwrap();
    for (serial, sealed, state, fingerprint) in [
        ("00408C702009", true, "waiting", None),
        ("00408C70200A", false, "dispatched", Some("F1")),
        ("00408C70200B", true, "returned", Some("F2")),
        ("00408C70200C", true, "refused", None),
    ] {
        let sealed = sealed.then(|| vault.seal(&format!("registration {serial}"), &secrets));
        sqlx::query(
            "INSERT INTO registration (serial, account, claimed, secrets, servers, trust_anchor, state, step, \
             fingerprint, since, seq) VALUES ($1, 1, $2, $3, '[\"sts:1\"]', 'PEM', $4, 'relay', $5, $2, 1)",
        )
        .bind(serial)
        .bind(time)
        .bind(sealed)
        .bind(state)
        .bind(fingerprint)
        .execute(&pool)
        .await
        .unwrap();
    }
    sqlx::query("DELETE FROM registration WHERE serial = '00408C70200C'").execute(&pool).await.unwrap();
    sqlx::query(
        "INSERT INTO registration (serial, account, claimed, servers, trust_anchor, state, step, since, seq) \
         VALUES ('00408C70200C', 1, $1, '[]', 'PEM', 'waiting', 'relay', $1, 4)",
    )
    .bind(time)
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;

    let store = Store::open(folder.path()).await.unwrap();
    let (alpha, beta) = (AccountId(1), AccountId(2));
    let jobs = store.jobs(SERIAL).await.unwrap();
    assert!(jobs[0].secrets.as_ref().unwrap().oak == OAK);
    for (last, is_claim) in [(0x09, false), (0x0A, true), (0x0B, true), (0x0C, true)] {
        let serial = SerialNumber::new([0x00, 0x40, 0x8C, 0x70, 0x20, last]);
        let known = store.get(alpha, serial).await.unwrap().unwrap();
        assert_eq!(known.contested, None);
        let put = store.put(beta, serial, &new(OAK), RULES).await;
        assert_eq!(matches!(put, Err(PutError::Claimed(_))), is_claim, "{serial}");
        if let Ok(generation) = put {
            assert_eq!(generation, Generation(6), "generations go on");
        }
    }
    assert_eq!(store.changes(alpha, 4).await.unwrap().changes.len(), 4, "each was contested");
}

/// Goal: who can write to the database, and has no key, moves no device's secrets to a registration of his own, nor
/// has them sent elsewhere.
#[tokio::test]
async fn secrets_that_were_moved_to_another_registration_are_of_no_use_there() {
    let folder = tempfile::tempdir().unwrap();
    let (store, accounts) = store(folder.path(), 2).await;
    for (account, oak) in [(accounts[0], OAK), (accounts[1], OTHER_OAK)] {
        store.put(account, SERIAL, &new(oak), RULES).await.unwrap();
    }
    for change in [
        "UPDATE registration SET secrets = (SELECT secrets FROM registration WHERE account = 1) WHERE account = 2",
        "UPDATE registration SET servers = '[\"elsewhere.example:443\"]'",
        "UPDATE registration SET trust_anchor = 'another'",
    ] {
        assert_eq!(store.jobs(SERIAL).await.unwrap().len(), 2);
        let before: Vec<(i64, Vec<u8>, String, String)> =
            sqlx::query_as("SELECT account, secrets, servers, trust_anchor FROM registration")
                .fetch_all(store.pool())
                .await
                .unwrap();
        sqlx::query(change).execute(store.pool()).await.unwrap();
        let refused = store.jobs(SERIAL).await.unwrap_err().to_string();
        assert!(refused.contains("another registration"), "{refused}");
        for (account, secrets, servers, trust_anchor) in before {
            let undo =
                "UPDATE registration SET secrets = $2, servers = $3, trust_anchor = $4 WHERE account = $1";
            let undo = sqlx::query(undo).bind(account).bind(secrets).bind(servers).bind(trust_anchor);
            undo.execute(store.pool()).await.unwrap();
        }
    }
}
