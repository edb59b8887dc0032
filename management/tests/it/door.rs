//! Who is let in, and who is not.

use crate::fake::{AT_ONCE, PASSWORD, Site};
use axum::http::{Method, StatusCode, header};
use homing_base::Ops;
use homing_management::Config;
use serde_json::{Value, json};

/// Every operation that the document names, with numbers for its parameters.
fn operations(document: &Value) -> Vec<(Method, String, bool)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            let path = path.replace("{serial}", "00408C702009").replace("{id}", "1").replace("{init}", "1");
            let public = operation["security"] == json!([{}]) || operation["security"] == json!([]);
            all.push((method, path, public));
        }
    }
    all
}

#[tokio::test]
async fn every_documented_route_exists_and_answers_401_to_a_stranger() {
    let site = Site::start().await;
    let document = site.get("/api/openapi.json").await;
    let operations = operations(&document);
    assert!(operations.len() >= 30, "{}", operations.len());
    let mut public = Vec::new();
    for (method, path, is_public) in operations {
        if is_public {
            public.push((method, path));
            continue;
        }
        for headers in
            [&[][..], &[("authorization", "Bearer homing_wrong")], &[("cookie", "homing_session=x")]]
        {
            let (status, _, body) = site.raw(method.clone(), &path, headers, None).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} with {headers:?}: {body}");
            assert_eq!(body["error"]["code"], "unauthorised");
        }
        // And it is there for who may: not "nothing at this address", not "not with this method". Two
        // would end this very token's owner or never end.
        if path.ends_with("/events") || (method == Method::DELETE && path.contains("/users/")) {
            continue;
        }
        let (status, body) = site.call(method.clone(), &path, None).await;
        assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_ne!(body["error"]["message"], "There is nothing at this address.", "{method} {path}");
    }
    assert_eq!(public, [(Method::POST, "/api/v1/session".to_owned())]);
    site.end().await;
}

#[tokio::test]
async fn what_is_undocumented_is_closed_to_strangers_as_well() {
    let site = Site::start().await;
    for path in ["/api/openapi.json", "/metrics", "/api/v1/nothing", "/nothing"] {
        let (status, _, _) = site.raw(Method::GET, path, &[], None).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for (path, kind) in [("/sign-in", "text/html; charset=utf-8"), ("/favicon.ico", "image/svg+xml")] {
        let (status, headers, _) = site.raw(Method::GET, path, &[], None).await;
        assert_eq!((status, headers[header::CONTENT_TYPE].to_str().unwrap()), (StatusCode::OK, kind));
    }
    assert_eq!(site.raw(Method::GET, "/healthz", &[], None).await.0, StatusCode::OK);
    // A person who asks for the page is shown where to sign in.
    let (status, headers, _) = site.raw(Method::GET, "/", &[("accept", "text/html")], None).await;
    assert_eq!((status, headers[header::LOCATION].to_str().unwrap()), (StatusCode::SEE_OTHER, "/sign-in"));
    assert!(
        site.call(Method::GET, "/metrics", None).await.1.as_str().unwrap().contains("homing_management_")
    );
    site.end().await;
}

#[tokio::test]
async fn every_answer_carries_the_security_headers() {
    let site = Site::start().await;
    for path in ["/sign-in", "/", "/api/v1/devices", "/nothing"] {
        let (_, headers, _) = site.raw(Method::GET, path, &[], None).await;
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
        assert!(headers.contains_key(header::CACHE_CONTROL));
    }
    site.end().await;
}

#[tokio::test]
async fn a_session_lets_its_browser_in_until_it_signs_out() {
    let site = Site::start().await;
    let body = json!({"user": "ADMIN", "password": PASSWORD});
    let (status, headers, who) = site.raw(Method::POST, "/api/v1/session", &[], Some(body)).await;
    assert_eq!((status, who["user"].as_str()), (StatusCode::OK, Some("admin")));
    let set = headers[header::SET_COOKIE].to_str().unwrap();
    assert!(
        set.contains("; HttpOnly") && set.contains("; SameSite=Strict") && set.contains("; Path=/"),
        "{set}"
    );
    let cookie = set.split(';').next().unwrap();
    let own = [("cookie", cookie), ("sec-fetch-site", "same-origin")];

    assert_eq!(site.raw(Method::GET, "/api/v1/devices", &own, None).await.0, StatusCode::OK);
    assert_eq!(site.raw(Method::GET, "/", &own, None).await.0, StatusCode::OK);
    let (_, _, sessions) = site.raw(Method::GET, "/api/v1/sessions", &own, None).await;
    assert_eq!((sessions[0]["present"].as_bool(), sessions.as_array().unwrap().len()), (Some(true), 1));

    let (status, headers, _) = site.raw(Method::DELETE, "/api/v1/session", &own, None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert!(headers[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(site.raw(Method::GET, "/api/v1/devices", &own, None).await.0, StatusCode::UNAUTHORIZED);
    site.end().await;
}

#[tokio::test]
async fn another_site_cannot_use_a_browsers_session() {
    let site = Site::start().await;
    let cookie = site.sign_in().await;
    let host = site.address.to_string();
    let (own, other) = (format!("http://{host}"), "http://evil.example".to_owned());
    let live_upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    for (headers, let_in) in [
        (vec![("sec-fetch-site", "same-origin")], true),
        (vec![("origin", own.as_str())], true),
        (vec![("x-homing-request", "1")], true),
        (vec![], false),
        (vec![("origin", other.as_str())], false),
        (vec![("origin", other.as_str()), ("x-homing-request", "1")], false),
        (vec![("sec-fetch-site", "cross-site"), ("origin", own.as_str())], false),
        (vec![("sec-fetch-site", "same-site")], false),
    ] {
        let mut headers = headers;
        headers.push(("cookie", cookie.as_str()));
        let body = json!({"name": "from elsewhere", "current": PASSWORD});
        let (status, _, body) = site.raw(Method::POST, "/api/v1/tokens", &headers, Some(body)).await;
        let expected = if let_in { StatusCode::CREATED } else { StatusCode::FORBIDDEN };
        assert_eq!(status, expected, "{headers:?}: {body}");
        // Reading is harmless (its answer is not for the other site), a WebSocket is not.
        assert_eq!(site.raw(Method::GET, "/api/v1/devices", &headers, None).await.0, StatusCode::OK);
        headers.extend(live_upgrade);
        let (status, _, _) = site.raw(Method::GET, "/api/v1/cameras/1/live", &headers, None).await;
        assert_eq!(status != StatusCode::FORBIDDEN, let_in, "{headers:?}: {status}");
    }
    // Nor can it sign somebody in as somebody else.
    let body = json!({"user": "admin", "password": PASSWORD});
    let (status, _, _) = site.raw(Method::POST, "/api/v1/session", &[("origin", &other)], Some(body)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    site.end().await;
}

#[tokio::test]
async fn guessing_passwords_is_slowed_down_and_written_down() {
    let site = Site::start().await;
    let guess = async || {
        let body = json!({"user": "admin", "password": "not this one"});
        site.raw(Method::POST, "/api/v1/session", &[], Some(body)).await
    };
    let mut tries = 0;
    let (headers, body) = loop {
        let (status, headers, body) = guess().await;
        if status == StatusCode::TOO_MANY_REQUESTS {
            break (headers, body);
        }
        assert_eq!(
            (status, body["error"]["code"].as_str()),
            (StatusCode::UNAUTHORIZED, Some("wrong-user-or-password"))
        );
        tries += 1;
        assert!(tries < 20);
    };
    assert_eq!(body["error"]["code"], "too-many-attempts");
    assert!(headers[header::RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    // The right password has to wait as well, or waiting would tell nothing from right.
    let body = json!({"user": "admin", "password": PASSWORD});
    let (status, _, _) = site.raw(Method::POST, "/api/v1/session", &[], Some(body)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let audit = site.get("/api/v1/audit").await;
    let refused =
        audit.as_array().unwrap().iter().filter(|entry| entry["action"] == "sign-in-refused").count();
    assert_eq!(refused, tries);
    assert!(!audit.to_string().contains("not this one"));
    site.end().await;
}

#[tokio::test]
async fn users_and_tokens_come_and_go() {
    let site = Site::start().await;
    let ada = json!({"name": "ada", "password": "a long password", "current": PASSWORD});
    let (status, user) = site.call(Method::POST, "/api/v1/users", Some(ada.clone())).await;
    assert_eq!(status, StatusCode::CREATED, "{user}");
    let (status, body) = site.call(Method::POST, "/api/v1/users", Some(ada)).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("taken")));
    let short = json!({"name": "bob", "password": "short", "current": PASSWORD});
    let (status, body) = site.call(Method::POST, "/api/v1/users", Some(short)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(body["error"]["message"].as_str().unwrap().contains("at least 10"), "{body}");
    let (status, body) = site.call(Method::POST, "/api/v1/users", Some(json!({"nmae": "x"}))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(body["error"]["message"].as_str().unwrap().contains("nmae"), "{body}");

    // Whatever opens a way in needs one's own password, with a token as well.
    let admin = site.get("/api/v1/session").await["id"].as_i64().unwrap();
    let own = format!("/api/v1/users/{admin}/password");
    let (status, body) = site.call(Method::PUT, &own, Some(json!({"password": "something else"}))).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::FORBIDDEN, Some("wrong-password")));
    let right = json!({"password": "something else", "current": PASSWORD});
    assert_eq!(site.call(Method::PUT, &own, Some(right)).await.0, StatusCode::NO_CONTENT);
    let now = "something else";
    let other = format!("/api/v1/users/{}/password", user["id"]);
    for (method, path, mut body) in [
        (Method::PUT, other.as_str(), json!({"password": "another password"})),
        (Method::POST, "/api/v1/tokens", json!({"name": "script"})),
        (Method::POST, "/api/v1/users", json!({"name": "eve", "password": "a long password"})),
    ] {
        for wrong in [Value::Null, json!(""), json!(PASSWORD)] {
            body["current"] = wrong;
            let (status, problem) = site.call(method.clone(), path, Some(body.clone())).await;
            assert_eq!(
                (status, problem["error"]["code"].as_str()),
                (StatusCode::FORBIDDEN, Some("wrong-password")),
                "{path}"
            );
        }
    }
    let reset = json!({"password": "another password", "current": now});
    assert_eq!(site.call(Method::PUT, &other, Some(reset)).await.0, StatusCode::NO_CONTENT);

    let script = json!({"name": "script", "current": now});
    let (status, token) = site.call(Method::POST, "/api/v1/tokens", Some(script)).await;
    assert_eq!(status, StatusCode::CREATED);
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let with_it = [("authorization", bearer.as_str())];
    assert_eq!(site.raw(Method::GET, "/api/v1/session", &with_it, None).await.0, StatusCode::OK);
    let listed = site.get("/api/v1/tokens").await;
    assert!(listed.as_array().unwrap().iter().all(|token| token.get("token").is_none()), "{listed}");
    let path = format!("/api/v1/tokens/{}", token["id"]);
    assert_eq!(site.call(Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(site.raw(Method::GET, "/api/v1/session", &with_it, None).await.0, StatusCode::UNAUTHORIZED);

    // Nobody is removed by who finds a browser open, or a token.
    let path = format!("/api/v1/users/{}", user["id"]);
    for unconfirmed in [None, Some(json!({})), Some(json!({"current": "not this one"}))] {
        let (status, body) = site.call(Method::DELETE, &path, unconfirmed).await;
        assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::FORBIDDEN, Some("wrong-password")));
    }
    let own = Some(json!({"current": now}));
    assert_eq!(site.call(Method::DELETE, &path, own.clone()).await.0, StatusCode::NO_CONTENT);
    let (status, body) = site.call(Method::DELETE, &format!("/api/v1/users/{admin}"), own).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("last-user")));
    let actions: Vec<String> = site
        .get("/api/v1/audit")
        .await
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|entry| entry["action"].as_str().unwrap().to_owned())
        .filter(|action| action != "confirm-refused")
        .collect();
    assert_eq!(
        actions,
        ["add-token", "add-user", "set-password", "set-password", "add-token", "remove-token", "remove-user"]
    );
    site.end().await;
}

#[tokio::test]
async fn https_with_a_certificate_from_its_own_ca() {
    use homing_base::client::{ApiClient, Auth};
    let site = Site::start_with(|config| config.tls = homing_base::tls::Https::Own).await;
    let trust = std::fs::read_to_string(site.data().join("management-ca.pem")).unwrap();
    let client = |trust: Option<&str>| {
        let auth = Auth::Bearer(site.token.as_str().into());
        ApiClient::new("management server", &format!("https://{}", site.address), &auth, trust).unwrap()
    };
    let who: Value = client(Some(&trust)).get("/api/v1/session").await.unwrap();
    assert_eq!(who["user"], "admin");
    client(None).get::<Value>("/api/v1/session").await.unwrap_err();
    site.end().await;
}

/// An open page of somebody who was signed out elsewhere must not go on telling, nor a script whose token is gone.
#[tokio::test]
async fn an_event_stream_ends_with_its_session_or_token() {
    let site = Site::start().await;
    let cookie = site.sign_in().await;
    let mut stream = crate::flow::Events::open(&site, ("cookie", &cookie)).await;
    stream.until("ready", |_| true).await;
    let own = [("cookie", cookie.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(site.raw(Method::DELETE, "/api/v1/session", &own, None).await.0, StatusCode::NO_CONTENT);
    let ended = tokio::time::timeout(AT_ONCE, stream.until_end()).await;
    assert!(ended.is_ok(), "the session's stream is still open");

    let script = json!({"name": "script", "current": PASSWORD});
    let (_, token) = site.call(Method::POST, "/api/v1/tokens", Some(script)).await;
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let mut stream = crate::flow::Events::open(&site, ("authorization", &bearer)).await;
    stream.until("ready", |_| true).await;
    let path = format!("/api/v1/tokens/{}", token["id"]);
    assert_eq!(site.call(Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    let ended = tokio::time::timeout(AT_ONCE, stream.until_end()).await;
    assert!(ended.is_ok(), "the token's stream is still open");
    site.end().await;
}

/// The password of the first user is shown once: a start that comes to nothing must not use it up.
#[tokio::test]
async fn a_first_start_on_a_port_that_is_taken_leaves_the_next_one_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config {
        listen: taken.local_addr().unwrap(),
        data: folder.path().join("management"),
        ..Config::default()
    };
    let bind = async || homing_management::bind(config.clone(), axum::Router::new(), &Ops::new()).await;
    let error = format!("{:#}", bind().await.err().unwrap());
    assert!(error.contains(&config.listen.to_string()) && error.contains("[management] listen"), "{error}");
    drop(taken);
    let bound = bind().await.unwrap();
    assert!(bound.first_start().is_some(), "nobody has seen the password");

    // And who has lost it gets another where the data folder is, beside a server that runs.
    let password = homing_management::reset_password(&config, "Admin").await.unwrap();
    assert!(!password.matches(bound.first_start().unwrap().password.expose()));
    assert!(homing_management::reset_password(&config, "nobody").await.is_err());
}
