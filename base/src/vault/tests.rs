//! Rotation cut short, under load, beside others; and what a stolen copy gives away. Values of the version before, too.

use super::*;
use crate::{Stop, database};
use rotate::Stage;
use std::{fs, os::unix::fs::PermissionsExt};

const TABLE: &str = "CREATE TABLE device (serial TEXT PRIMARY KEY, password BLOB, oak BLOB) STRICT;";
const COLUMNS: &[SealedColumn] = &[
    SealedColumn { table: "device", key: "serial", column: "password", purpose: password_of },
    SealedColumn { table: "device", key: "serial", column: "oak", purpose: oak_of },
];

fn password_of(serial: &str) -> String {
    format!("password of {serial}")
}

fn oak_of(serial: &str) -> String {
    format!("OAK of {serial}")
}

/// A role's folder, database and vault.
struct Role {
    pool: SqlitePool,
    vault: Vault,
}

impl Role {
    async fn open(folder: &Path) -> Role {
        Self::try_open(folder).await.unwrap()
    }

    async fn try_open(folder: &Path) -> anyhow::Result<Role> {
        let pool = database::open(&folder.join("role.sqlite"), &[TABLE]).await?;
        let vault = Vault::open("tunnel", folder, &pool, COLUMNS).await?;
        Ok(Role { pool, vault })
    }

    /// As a process that is killed: whatever was not written is gone.
    async fn close(self) {
        self.pool.close().await;
    }

    async fn put(&self, serial: &str, password: &str) {
        sqlx::query("INSERT OR REPLACE INTO device VALUES ($1, $2, NULL)")
            .bind(serial)
            .bind(self.vault.seal(&password_of(serial), &password.into()))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn password(&self, serial: &str) -> anyhow::Result<Secret> {
        let sealed: Vec<u8> = sqlx::query_scalar("SELECT password FROM device WHERE serial = $1")
            .bind(serial)
            .fetch_one(&self.pool)
            .await?;
        self.vault.open_sealed(&password_of(serial), &sealed)
    }
}

fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn sealed_for_one_purpose_under_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let role = Role::open(folder.path()).await;
    let sealed = role.vault.seal("device 1", &"sesame".into());
    assert!(!sealed.windows(6).any(|window| window == b"sesame"));

    let again = Vault::open("tunnel", folder.path(), &role.pool, COLUMNS).await.unwrap();
    assert!(again.open_sealed("device 1", &sealed).unwrap().matches("sesame"));
    assert!(again.open_sealed("device 2", &sealed).is_err());
    for index in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[index] ^= 1;
        assert!(again.open_sealed("device 1", &changed).is_err(), "byte {index}");
        assert!(again.open_sealed("device 1", &sealed[..index]).is_err(), "cut at {index}");
    }
    let other = tempfile::tempdir().unwrap();
    assert!(Role::open(other.path()).await.vault.open_sealed("device 1", &sealed).is_err());
}

#[test]
fn a_folder_serves_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("role");
    let first = claim_folder(&data).unwrap();
    let error = claim_folder(&data).unwrap_err().to_string();
    assert!(error.contains("another process") && error.contains(&data.display().to_string()), "{error}");
    drop(first);
    claim_folder(&data).unwrap();
}

/// Goal: a key that is missing, somebody else's or readable by others is refused by what is wrong; none is made in its
/// place, and nothing is lost.
#[tokio::test]
async fn a_master_key_that_does_not_belong_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let role = Role::open(folder.path()).await;
    role.put("A", "sesame").await;
    role.close().await;
    let file = folder.path().join("master.key");
    let key = fs::read(&file).unwrap();
    let message = async || format!("{:#}", Role::try_open(folder.path()).await.err().unwrap());

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(message().await.contains("chmod 600"));
    fs::remove_file(&file).unwrap();
    assert!(message().await.contains("the master key is missing"));
    assert!(!file.exists());
    write_private(&file, &[1; KEY_LENGTH]).unwrap();
    assert!(message().await.contains("not the one of this database"));
    write_private(&file, &key).unwrap();
    assert!(Role::open(folder.path()).await.password("A").await.unwrap().matches("sesame"));
}

/// Goal: what the version before sealed by the master key itself is read, and sealed anew.
#[tokio::test]
async fn values_from_before_there_were_data_keys_stay_readable() {
    let folder = tempfile::tempdir().unwrap();
    let key = master::random_key();
    write_private(&folder.path().join("master.key"), &key).unwrap();
    let mut sealed = vec![VERSION_WITHOUT_DATA_KEY];
    sealed.extend(master::encrypt(&master::aes(&key), &password_of("A"), b"sesame"));
    let pool = database::open(&folder.path().join("role.sqlite"), &[TABLE]).await.unwrap();
    sqlx::query("INSERT INTO device VALUES ('A', $1, NULL)").bind(sealed).execute(&pool).await.unwrap();

    let role = Role { vault: Vault::open("tunnel", folder.path(), &pool, COLUMNS).await.unwrap(), pool };
    assert!(role.password("A").await.unwrap().matches("sesame"));
    assert!(role.vault.retire_old_keys().await.unwrap());
    assert!(role.password("A").await.unwrap().matches("sesame"));
    let versions: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT substr(password, 1, 1) FROM device").fetch_all(&role.pool).await.unwrap();
    assert_eq!(versions, [[VERSION]]);
}

/// Goal: a rotation that is cut short anywhere loses nothing, and the next start goes on.
#[tokio::test]
async fn killed_between_any_two_stages_of_a_rotation_everything_is_readable() {
    for stage in [Stage::KeyWritten, Stage::Wrapped, Stage::Renamed, Stage::Unwrapped] {
        let folder = tempfile::tempdir().unwrap();
        let role = Role::open(folder.path()).await;
        role.put("A", "sesame").await;
        let old_key = fs::read(folder.path().join("master.key")).unwrap();
        role.vault.rotate_through(stage).await.unwrap();
        // It goes on sealing under what it has, until it is killed.
        role.put("B", "second").await;
        role.close().await;

        let role = Role::open(folder.path()).await;
        assert!(role.password("A").await.unwrap().matches("sesame"), "{stage:?}");
        assert!(role.password("B").await.unwrap().matches("second"), "{stage:?}");
        assert!(!folder.path().join("master.key.next").exists(), "{stage:?}");
        // Some columns are sealed anew when it is killed again.
        role.vault.shared.seal_column_anew(&COLUMNS[0], &mut rotate::Sealed::default()).await.unwrap();
        role.close().await;
        let role = Role::open(folder.path()).await;
        assert!(role.password("A").await.unwrap().matches("sesame"), "{stage:?}");
        assert!(role.vault.retire_old_keys().await.unwrap());
        assert!(role.password("A").await.unwrap().matches("sesame"), "{stage:?}");
        assert!(role.password("B").await.unwrap().matches("second"), "{stage:?}");
        let is_new = fs::read(folder.path().join("master.key")).unwrap() != old_key;
        assert_eq!(is_new, stage > Stage::KeyWritten, "{stage:?}");
        role.close().await;
    }
}

/// Goal: the old master key opens no copy of the database that was made after the rotation; the new one does, and without
/// a key a copy is of no use.
#[tokio::test]
async fn the_old_master_key_opens_nothing_of_what_was_copied_after_the_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let role = Role::open(folder.path()).await;
    role.put("A", "sesame").await;
    let old_key = fs::read(folder.path().join("master.key")).unwrap();
    role.vault.rotate().await.unwrap();
    assert!(role.vault.retire_old_keys().await.unwrap());
    let kept: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT master FROM data_key").fetch_all(&role.pool).await.unwrap();
    assert_eq!(kept.len(), 1, "one data key, wrapped once");
    role.close().await;

    let stolen = tempfile::tempdir().unwrap();
    copy(folder.path(), stolen.path());
    assert!(
        Role::open(stolen.path()).await.password("A").await.unwrap().matches("sesame"),
        "the copy is whole"
    );
    fs::remove_file(stolen.path().join("master.key")).unwrap();
    assert!(Role::try_open(stolen.path()).await.is_err());
    write_private(&stolen.path().join("master.key"), &old_key).unwrap();
    assert!(Role::try_open(stolen.path()).await.is_err());
    for file in fs::read_dir(stolen.path()).unwrap() {
        let file = file.unwrap().path();
        if file.file_name().unwrap() == "master.key" {
            continue;
        }
        let bytes = fs::read(&file).unwrap();
        for secret in [b"sesame".as_slice(), &old_key] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", file.display());
        }
    }
}

/// Goal: keys rotated again and again while values are written and read: every read succeeds, the last write counts, and
/// a writer waits no longer than one of the small transactions.
#[tokio::test]
async fn rotated_under_load_no_value_is_unreadable_and_no_write_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let role = Arc::new(Role::open(folder.path()).await);
    for number in 0..600 {
        role.put(&format!("{number:04}"), "first").await;
    }
    let stop = Stop::new();
    let (loading, ended) = (Arc::clone(&role), stop.clone());
    let load = stop.spawn(async move {
        let (mut round, mut longest) = (0u32, std::time::Duration::ZERO);
        while !ended.is_stopped() {
            let serial = format!("{:04}", (round * 37) % 600);
            let began = std::time::Instant::now();
            loading.put(&serial, &format!("round {round}")).await;
            longest = longest.max(began.elapsed());
            assert!(loading.password(&serial).await.unwrap().matches(&format!("round {round}")));
            let other = format!("{:04}", (round * 91) % 600);
            loading.password(&other).await.unwrap();
            round += 1;
        }
        (round, longest)
    });
    for _ in 0..4 {
        role.vault.rotate().await.unwrap();
        role.vault.shared.seal_anew().await.unwrap();
    }
    stop.stop();
    let (rounds, longest) = load.await.unwrap();
    assert!(rounds > 10, "the load ran beside: {rounds}");
    assert!(longest < std::time::Duration::from_secs(2), "a writer waited {longest:?}");
    assert!(role.vault.retire_old_keys().await.unwrap());
    let last = |serial: u32| (0..rounds).rev().find(|round| (round * 37) % 600 == serial);
    for serial in 0..600 {
        let expected = last(serial).map_or("first".to_owned(), |round| format!("round {round}"));
        assert!(role.password(&format!("{serial:04}")).await.unwrap().matches(&expected), "{serial}");
    }
}

/// Goal: a request in the folder is carried out by the role that runs, without a restart; a process beside it goes on.
#[tokio::test]
async fn a_running_role_rotates_when_it_is_asked_to_and_commands_beside_it_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let role = Role::open(folder.path()).await;
    let pool = database::open(&folder.path().join("role.sqlite"), &[TABLE]).await.unwrap();
    let beside = Vault::open_beside("tunnel", folder.path(), &pool).await.unwrap();
    let before = fs::read(folder.path().join("master.key")).unwrap();

    let stop = Stop::new();
    stop.spawn(role.vault.clone().keep(stop.clone()));
    request_rotation(folder.path()).unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while is_requested(folder.path()) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the request is taken");
    assert_ne!(fs::read(folder.path().join("master.key")).unwrap(), before);

    role.put("A", "sesame").await;
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    beside.refresh(&mut change).await.unwrap();
    let sealed: Vec<u8> =
        sqlx::query_scalar("SELECT password FROM device").fetch_one(&mut *change).await.unwrap();
    assert!(beside.open_sealed(&password_of("A"), &sealed).unwrap().matches("sesame"));
    assert_eq!(beside.seal("x", &"y".into())[..9], role.vault.seal("x", &"y".into())[..9], "the same key");
    change.rollback().await.unwrap();
    assert!(stop.drain(std::time::Duration::from_secs(5)).await);
}

/// Goal: a column that its role forgot to name keeps its key, so that it is not lost.
#[tokio::test]
async fn a_data_key_is_destroyed_only_when_nothing_at_all_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let role = Role::open(folder.path()).await;
    sqlx::query("CREATE TABLE forgotten (value BLOB) STRICT").execute(&role.pool).await.unwrap();
    let sealed = role.vault.seal("forgotten", &"sesame".into());
    sqlx::query("INSERT INTO forgotten VALUES ($1)").bind(&sealed).execute(&role.pool).await.unwrap();
    role.vault.rotate().await.unwrap();
    assert!(!role.vault.retire_old_keys().await.unwrap());
    assert!(role.vault.open_sealed("forgotten", &sealed).unwrap().matches("sesame"));
    sqlx::query("DELETE FROM forgotten").execute(&role.pool).await.unwrap();
    assert!(role.vault.retire_old_keys().await.unwrap());
    assert!(role.vault.open_sealed("forgotten", &sealed).is_err());
}

/// Goal: where several rows have one key, none is left out, wherever a page ends.
#[tokio::test]
async fn rows_that_share_a_key_are_all_sealed_anew() {
    const SHARED: &str = "CREATE TABLE device (serial TEXT, password BLOB, oak BLOB) STRICT;";
    for alone in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let pool = database::open(&folder.path().join("role.sqlite"), &[SHARED]).await.unwrap();
        let vault = Vault::open("tunnel", folder.path(), &pool, COLUMNS).await.unwrap();
        let role = Role { pool, vault };
        for number in 0..300 {
            role.put(&format!("{:03}", (number + alone) / 2), "sesame").await;
        }
        role.vault.rotate().await.unwrap();
        assert!(role.vault.retire_old_keys().await.unwrap(), "the old key is named still");
        assert!(role.password("100").await.unwrap().matches("sesame"));
    }
}
