//! Both halves against the standards' examples and against each other.

use super::server::{Algorithm, Answer};
use super::*;
use crate::secret::{Credentials, Secret};
use proptest::prelude::*;

const NOW_S: u64 = 1_000_000;

fn guard() -> DigestGuard {
    DigestGuard::new("homing", [7; 32])
}

fn root(user: &str) -> Option<Secret> {
    (user == "root").then(|| "sesame".into())
}

fn answer(challenges: &[String], method: &str, uri: &str, credentials: &Credentials) -> String {
    let mut client = ClientAuth::new(BasicPolicy::Allow);
    client.handle_challenge(challenges.iter().map(String::as_str)).unwrap();
    client.authorize(method, uri, credentials).unwrap().unwrap()
}

/// The vectors of RFC 7616 §3.9.1 and RFC 2617 §3.5 are right in user, password and response; their
/// nonce is not ours, so that the guard says `Stale`, and with any other password `Wrong`.
#[test]
fn the_examples_of_the_standards() {
    let rfc7616 = |algorithm: &str, response: &str| {
        format!(
            r#"Digest username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html",
            algorithm={algorithm}, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001,
            cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, response="{response}",
            opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS""#
        )
    };
    let rfc2617 = r#"Digest username="Mufasa", realm="testrealm@host.com",
        nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="/dir/index.html", qop=auth, nc=00000001,
        cnonce="0a4f113b", response="6629fae49393a05397450978507c4ef1""#;
    let sha256 = "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1";
    for (realm, password, header) in [
        ("http-auth@example.org", "Circle of Life", rfc7616("MD5", "8ca523f5e9506fed4657c9700eebdbec")),
        ("http-auth@example.org", "Circle of Life", rfc7616("SHA-256", sha256)),
        ("testrealm@host.com", "Circle Of Life", rfc2617.to_owned()),
    ] {
        let guard = DigestGuard::new(realm, [0; 32]);
        let check = |method: &str, password: &'static str| {
            guard.check(method, "/dir/index.html", Some(&header), |_| Some(password.into()), NOW_S)
        };
        assert_eq!(check("GET", password), Err(Refusal::Stale), "{header}");
        assert_eq!(check("GET", "Circle of life"), Err(Refusal::Wrong), "{header}");
        assert_eq!(check("POST", password), Err(Refusal::Wrong), "{header}");
    }
}

#[test]
fn a_client_with_the_right_password_passes_and_nobody_else() {
    let guard = guard();
    let challenges = guard.challenges(NOW_S, false);
    assert_eq!(challenges.len(), 2);
    let check = |method, uri, header: &str, now_s| guard.check(method, uri, Some(header), root, now_s);

    let good = answer(&challenges, "POST", "/onvif", &Credentials::new("root", "sesame"));
    assert!(good.contains("algorithm=SHA-256"), "the best scheme is chosen: {good}");
    assert_eq!(check("POST", "/onvif", &good, NOW_S), Ok(User { name: "root".into() }));
    assert_eq!(check("POST", "http://00408c702009/onvif", &good, NOW_S + 300).unwrap().name, "root");
    assert_eq!(check("POST", "/onvif", &good, NOW_S + 301), Err(Refusal::Stale));
    assert_eq!(check("POST", "/onvif", &good, NOW_S - 1), Err(Refusal::Stale), "a nonce of tomorrow");
    assert_eq!(check("GET", "/onvif", &good, NOW_S), Err(Refusal::Wrong));
    assert_eq!(check("POST", "/other", &good, NOW_S), Err(Refusal::Wrong));

    let md5 = answer(&challenges[1..], "POST", "/onvif", &Credentials::new("root", "sesame"));
    assert!(md5.contains("algorithm=MD5"));
    assert!(check("POST", "/onvif", &md5, NOW_S).is_ok());
    for (user, password) in [("root", "Sesame"), ("admin", "sesame"), ("admin", ""), ("", "")] {
        let bad = answer(&challenges, "POST", "/onvif", &Credentials::new(user, password));
        assert_eq!(check("POST", "/onvif", &bad, NOW_S), Err(Refusal::Wrong), "{user} {password}");
    }
    assert_eq!(guard.check("GET", "/", None, root, NOW_S), Err(Refusal::Missing));
    assert_eq!(check("GET", "/", "Bearer abc", NOW_S), Err(Refusal::Missing));
}

#[test]
fn basic_and_rfc_2069_only_where_the_policy_says_so() {
    let basic = "Basic cm9vdDpzZXNhbWU="; // root:sesame
    let strict = guard();
    assert_eq!(strict.check("GET", "/", Some(basic), root, NOW_S), Err(Refusal::Missing));
    let open = guard().basic(BasicPolicy::Allow).rfc2069(Rfc2069Policy::Accept);
    assert_eq!(open.check("GET", "/", Some(basic), root, NOW_S).unwrap().name, "root");
    let wrong = "Basic cm9vdDpzZXNhbQ==";
    assert_eq!(open.check("GET", "/", Some(wrong), root, NOW_S), Err(Refusal::Wrong));
    let challenges = open.challenges(NOW_S, false);
    assert_eq!(challenges.len(), 4);

    // An RTSP client that ignores qop, as many do.
    let nonce = strict.nonce(NOW_S);
    let challenge = format!(r#"Digest realm="homing", nonce="{nonce}""#);
    assert_eq!(challenges[2], challenge, "as live555 reads it");
    let old = answer(&[challenge], "DESCRIBE", "rtsp://cam/1/", &Credentials::new("root", "sesame"));
    assert!(!old.contains("qop"));
    let check = |guard: &DigestGuard| guard.check("DESCRIBE", "rtsp://cam/1", Some(&old), root, NOW_S);
    assert!(matches!(check(&strict), Err(Refusal::Malformed(_))));
    assert!(check(&open).is_ok());
    // live555 answers SETUP of a track for the presentation; for another one it is not good.
    let query =
        answer(&challenges[2..3], "SETUP", "rtsp://cam/1/live?a=b/", &Credentials::new("root", "sesame"));
    let set_up = |guard: &DigestGuard, uri: &str| guard.check("SETUP", uri, Some(&query), root, NOW_S);
    assert!(set_up(&open, "rtsp://cam/1/live/trackID=0?a=b").is_ok());
    assert!(set_up(&open, "rtsp://cam/2/live/trackID=0?a=b").is_err());
    assert!(set_up(&open, "rtsp://cam/1/trackID=0?a=b").is_err());
}

#[test]
fn user_names_beyond_ascii_in_both_spellings() {
    let guard = guard().rfc2069(Rfc2069Policy::Accept);
    let passwords = |user: &str| (user == "jürgen \"j\"").then(|| Secret::from("sesame"));
    let nonce = guard.nonce(NOW_S);
    let answer = Answer {
        username: "jürgen \"j\"".into(),
        nonce: nonce.clone(),
        uri: "/".into(),
        response: String::new(),
        algorithm: Algorithm::Md5,
        session: false,
        cnonce: None,
        qop: None,
    };
    let response = answer.expected_response("GET", "homing", "sesame");
    for username in [r#"username="jürgen \"j\"""#, "username*=utf-8''j%C3%BCrgen%20%22j%22"] {
        let header = format!(r#"Digest {username}, nonce="{nonce}", uri="/", response="{response}""#);
        assert!(guard.check("GET", "/", Some(&header), passwords, NOW_S).is_ok(), "{header}");
    }
}

#[test]
fn the_client_tells_an_expired_nonce_from_a_wrong_password() {
    let credentials = Credentials::new("root", "sesame");
    let first = r#"Digest realm="cam", nonce="1""#;
    let second = r#"Digest realm="cam", nonce="2""#;
    let stale = r#"Digest realm="cam", nonce="3", stale=true"#;

    let mut client = ClientAuth::new(BasicPolicy::Refuse);
    assert_eq!(client.authorize("GET", "/", &credentials), Ok(None));
    client.handle_challenge([first]).unwrap();
    client.authorize("GET", "/", &credentials).unwrap().unwrap();
    client.handle_challenge([stale]).expect("stale: try again");
    client.authorize("GET", "/", &credentials).unwrap().unwrap();
    assert_eq!(client.handle_challenge([second]), Err(ClientError::WrongCredentials));

    let mut client = ClientAuth::new(BasicPolicy::Refuse);
    client.handle_challenge([first]).unwrap();
    client.authorize("GET", "/", &credentials).unwrap().unwrap();
    client.handle_accepted();
    client.handle_challenge([second]).expect("a nonce that worked has expired unsaid");
    client.authorize("GET", "/", &credentials).unwrap().unwrap();
    assert_eq!(client.handle_challenge([first]), Err(ClientError::WrongCredentials));

    let mut client = ClientAuth::new(BasicPolicy::Refuse);
    client.handle_challenge([first]).unwrap();
    client.authorize("GET", "/", &credentials).unwrap().unwrap();
    client.handle_challenge([stale]).expect("once");
    assert_eq!(client.handle_challenge([stale]), Err(ClientError::WrongCredentials), "not for ever");
}

#[test]
fn the_client_takes_the_best_scheme_that_its_policy_allows() {
    let basic = r#"Basic realm="cam""#;
    let md5 = r#"Digest realm="cam", nonce="1", qop="auth", algorithm=md5"#;
    let sha = r#"Digest realm="cam", nonce="2", qop="auth", algorithm="SHA-256""#;
    let credentials = Credentials::new("root", "sesame");
    for (values, policy, begins, contains) in [
        (vec![basic, md5, sha], BasicPolicy::Allow, "Digest", "SHA-256"),
        (vec![basic, md5], BasicPolicy::Allow, "Digest", "algorithm=MD5"),
        (vec![basic], BasicPolicy::Allow, "Basic", "cm9vdDpzZXNhbWU="),
        (vec!["Negotiate, Digest realm=\"cam\", nonce=\"1\""], BasicPolicy::Refuse, "Digest", "cam"),
    ] {
        let mut client = ClientAuth::new(policy);
        client.handle_challenge(values.iter().copied()).unwrap();
        let header = client.authorize("GET", "/", &credentials).unwrap().unwrap();
        assert!(header.starts_with(begins) && header.contains(contains), "{header}");
    }
    let refused = |values: &[&str]| {
        ClientAuth::new(BasicPolicy::Refuse).handle_challenge(values.iter().copied()).unwrap_err()
    };
    assert_eq!(refused(&[basic]), ClientError::OnlyBasic);
    assert_eq!(refused(&["Bearer"]), ClientError::NoScheme { offered: "Bearer".into() });
    assert_eq!(refused(&[]), ClientError::NoScheme { offered: "nothing".into() });
}

#[test]
fn secrets_do_not_show() {
    let guard = DigestGuard::new("a\"b\\c\r\n", [0xAB; 32]);
    assert_eq!(guard.realm(), "abc");
    assert!(!format!("{guard:?}").contains("171"));
}

proptest! {
    #[test]
    fn hostile_headers_are_refused_in_peace(header in "(Digest |Basic )?[ -~üß\\t\"\\\\,=]{0,300}") {
        let guard = guard().basic(BasicPolicy::Allow).rfc2069(Rfc2069Policy::Accept);
        prop_assert!(guard.check("GET", "/", Some(&header), root, NOW_S).is_err());
        let _ = ClientAuth::new(BasicPolicy::Allow).handle_challenge([header.as_str()]);
    }

    #[test]
    fn a_good_header_that_is_cut_or_altered_never_passes(at in 0usize..400, with in any::<char>()) {
        let guard = guard();
        let credentials = Credentials::new("root", "sesame");
        let good = answer(&guard.challenges(NOW_S, false), "GET", "/a", &credentials);
        let boundaries: Vec<usize> = good.char_indices().map(|(index, _)| index).collect();
        let at = boundaries[at % boundaries.len()];
        prop_assert!(guard.check("GET", "/a", Some(&good[..at]), root, NOW_S).is_err());
        let mut altered = good.clone();
        altered.replace_range(at..=at, &with.to_string());
        // Spacing, the letter case of names and the realm (which is not ours to be told) may change.
        if let Ok(user) = guard.check("GET", "/a", Some(&altered), root, NOW_S) {
            prop_assert_eq!(user.name, "root");
        }
    }

    #[test]
    fn every_user_and_password_passes(user in "[^\\x00-\\x1f\\x7f-\\x9f]{1,20}", password in ".{0,20}") {
        let guard = guard();
        let credentials = Credentials::new(user.clone(), password.clone());
        let header = answer(&guard.challenges(NOW_S, false), "GET", "/a", &credentials);
        let known = |name: &str| (name == user).then(|| Secret::from(password.as_str()));
        prop_assert_eq!(guard.check("GET", "/a", Some(&header), known, NOW_S).unwrap().name, user.clone());
    }
}
