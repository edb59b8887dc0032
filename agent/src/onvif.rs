//! The ONVIF services that the agent answers for its cameras: device, Media2, uplink, security.
//!
//! Step 5 is answered here: the dispatcher's log-in (GetDeviceInformation), the tunnel server's trust
//! anchor, and SetUplink. What changes or tells anything needs the camera's own user and password, by
//! HTTP Digest or WS-Security UsernameToken; what ONVIF calls PRE_AUTH stays open.
//!
//! Not here: what the cameras answer themselves (`proxy.rs`), and when uplinks are dialled (`state.rs`).

use crate::camera::Cameras;
use crate::guesses::Turns;
use crate::identity::Identity;
use crate::rtsp;
use crate::state::{Event, Peer};
use crate::status::Status;
use crate::store::{DEVICE_CERTIFICATE_ID, MAX_CERTIFICATES, MAX_POLICIES, MAX_UPLINKS, Store};
use bytes::Bytes;
use homing_protocol::digest::{DigestGuard, Refusal};
use homing_protocol::onvif::{
    AccessClass, DEVICE_NS, DEVICE_PATH, DeviceRequest, MEDIA2_NS, MEDIA2_PATH, Message, SECURITY_NS,
    SECURITY_PATH, UPLINK_NS, UPLINK_PATH, device, media2, security, uplink,
};
use homing_protocol::soap::{Element, Envelope, Fault, SoapVersion, wsse};
use homing_protocol::{Secret, Step};
use http::{HeaderMap, Method, Response, StatusCode, Uri, header, request::Parts};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The version of the specifications that the messages are from.
const ONVIF_VERSION: (u32, u32) = (26, 6);

/// Whether a path belongs to a service that is answered here.
pub fn is_service(path: &str) -> bool {
    [DEVICE_PATH, MEDIA2_PATH, UPLINK_PATH, SECURITY_PATH].contains(&path)
}

/// What the services answer from.
pub struct Services {
    pub identity: Identity,
    pub cameras: Cameras,
    /// How many dispatchers are on the list.
    pub dispatchers: usize,
    pub store: Store,
    pub manufacturer: String,
    pub model: String,
    pub guard: DigestGuard,
    pub started: Instant,
    pub started_at: jiff::Timestamp,
    pub status: watch::Receiver<Status>,
    pub events: mpsc::Sender<Event>,
}

impl Services {
    /// Answers one request; `peer` is what the uplink leads to that it came through, `turns` are that uplink's.
    pub async fn answer(&self, head: &Parts, body: &[u8], peer: &Peer, turns: &Turns) -> Response<Bytes> {
        if head.method != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "ONVIF services take POST");
        }
        let envelope = match Envelope::parse(body) {
            Ok(envelope) => envelope,
            Err(error) => {
                let fault = Fault::sender(&["WellFormed"], error.to_string());
                return soap_fault(SoapVersion::V12, &fault, StatusCode::BAD_REQUEST);
            }
        };
        let version = envelope.version;
        let request = match DeviceRequest::parse(&envelope) {
            Ok(request) => request,
            Err(fault) => return soap_fault(version, &fault, status_of(&fault)),
        };
        if request.access() != AccessClass::PreAuth
            && let Err(refusal) = self.authenticate(head, &envelope, turns).await
        {
            if refusal != Refusal::Missing {
                tracing::info!(step = %Step::Dispatch, request = request.name(), %refusal, "refused");
            }
            return self.challenge(version, refusal);
        }
        let authority = authority_of(head);
        match self.carry_out(request, &authority, peer).await {
            Ok(element) => soap(version, StatusCode::OK, &Envelope::answer(version, element).to_xml()),
            Err(fault) => soap_fault(version, &fault, status_of(&fault)),
        }
    }

    /// Seconds for the guard.
    fn now_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// The camera's password, which is the device's.
    pub fn password(&self, user: &str) -> Option<Secret> {
        let credentials = self.cameras.log_in.credentials();
        (credentials.user == user).then_some(credentials.password)
    }

    /// Checks HTTP's own credentials, when their turn has come.
    pub async fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        turns: &Turns,
    ) -> Result<(), Refusal> {
        // Who asks how to log in does not guess, and need not wait.
        let authorization = headers.get(header::AUTHORIZATION).ok_or(Refusal::Missing)?;
        let authorization = authorization.to_str().map_err(|_| Refusal::Malformed("not text"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let password = |user: &str| self.password(user);
        let check = || {
            self.guard.check(method.as_str(), path, Some(authorization), password, self.now_s()).map(|_| ())
        };
        turns.look(check).await
    }

    /// Says how credentials are to be sent.
    pub fn add_challenges(&self, refusal: Refusal, headers: &mut HeaderMap) {
        for challenge in self.guard.challenges(self.now_s(), refusal == Refusal::Stale) {
            let value = challenge.parse().expect("a challenge is printable");
            headers.append(header::WWW_AUTHENTICATE, value);
        }
    }

    async fn authenticate(&self, head: &Parts, envelope: &Envelope, turns: &Turns) -> Result<(), Refusal> {
        match self.check(&head.method, &head.uri, &head.headers, turns).await {
            Err(Refusal::Missing) if envelope.header.is_empty() => Err(Refusal::Missing),
            // TLS is around it: that it can be replayed within minutes helps nobody.
            Err(Refusal::Missing) => {
                let check =
                    || wsse::check(envelope, |user| self.password(user), jiff::Timestamp::now()).map(|_| ());
                turns.look(check).await
            }
            other => other,
        }
    }

    fn challenge(&self, version: SoapVersion, refusal: Refusal) -> Response<Bytes> {
        let fault = Fault::not_authorized(refusal.to_string());
        let mut response = soap_fault(version, &fault, StatusCode::UNAUTHORIZED);
        self.add_challenges(refusal, response.headers_mut());
        response
    }

    async fn carry_out(
        &self,
        request: DeviceRequest,
        authority: &str,
        peer: &Peer,
    ) -> Result<Element, Fault> {
        use DeviceRequest as Ask;
        Ok(match request {
            Ask::GetDeviceInformation(_) => self.device_information().to_element(),
            Ask::GetSystemDateAndTime(_) => {
                device::SystemDateAndTime::kept_by_ntp(jiff::Timestamp::now()).to_element()
            }
            Ask::GetServices(ask) => self.services(authority, ask.include_capability).to_element(),
            Ask::GetCapabilities(_) => {
                let device_xaddr = format!("http://{authority}{DEVICE_PATH}");
                device::Capabilities { device_xaddr, media_xaddr: None }.to_element()
            }
            Ask::GetDeviceServiceCapabilities(_) => device_capabilities().to_element(),
            Ask::SetUser(_) if *peer == Peer::Dispatcher => {
                return Err(Fault::receiver(&["ActionNotSupported"], "passwords are the owner's to change"));
            }
            Ask::SetUser(ask) => {
                let changed = self.cameras.change_password(&ask.user).await;
                changed.map_err(|reason| Fault::receiver(&["Action"], reason))?;
                device::UserSet.to_element()
            }
            Ask::SystemReboot(_) if *peer == Peer::Dispatcher => {
                return Err(Fault::receiver(&["ActionNotSupported"], "restarting is the owner's to ask"));
            }
            // The cameras alone: the agent has nothing that a restart would mend, and would lose its uplinks.
            Ask::SystemReboot(_) => {
                let restarted = self.cameras.restart().await;
                restarted.map_err(|reason| Fault::receiver(&["Action"], reason))?;
                device::Rebooting { message: "The cameras restart.".to_owned() }.to_element()
            }
            Ask::GetMediaServiceCapabilities(_) => self.media_capabilities().to_element(),
            Ask::GetProfiles(ask) => self.profiles(ask.token.as_deref())?.to_element(),
            Ask::GetStreamUri(ask) => self.stream_uri(&ask)?.to_element(),
            Ask::GetUplinkServiceCapabilities(_) => uplink_capabilities().to_element(),
            Ask::GetUplinks(_) => self.uplinks().await.to_element(),
            Ask::SetUplink(ask) => self.set_uplink(ask.0, peer).await?.to_element(),
            Ask::DeleteUplink(ask) => self.delete_uplink(&ask.remote_address).await?.to_element(),
            Ask::GetSecurityServiceCapabilities(_) => security_capabilities().to_element(),
            Ask::UploadCertificate(ask) => self.upload_certificate(ask).await?.to_element(),
            Ask::GetAllCertificates(_) => self.certificates().await.to_element(),
            Ask::DeleteCertificate(ask) => {
                if ask.certificate_id == DEVICE_CERTIFICATE_ID {
                    return Err(Fault::sender(
                        &["InvalidArgVal", "ReferenceExists"],
                        "this is the device's own",
                    ));
                }
                self.store.change(|kept| kept.delete_certificate(&ask.certificate_id)).await?;
                security::CertificateDeleted.to_element()
            }
            Ask::CreateCertPathValidationPolicy(ask) => {
                let create = |kept: &mut crate::store::Kept| kept.create_policy(ask.trust_anchors, ask.alias);
                let policy_id = self.store.change(create).await?;
                security::PolicyCreated { policy_id }.to_element()
            }
            Ask::GetAllCertPathValidationPolicies(_) => self.policies().await.to_element(),
            Ask::DeleteCertPathValidationPolicy(ask) => {
                self.store.change(|kept| kept.delete_policy(&ask.policy_id)).await?;
                security::PolicyDeleted.to_element()
            }
        })
    }

    fn device_information(&self) -> device::DeviceInformation {
        device::DeviceInformation {
            manufacturer: self.manufacturer.clone(),
            model: self.model.clone(),
            firmware_version: env!("CARGO_PKG_VERSION").into(),
            serial_number: self.identity.serial.to_string(),
            hardware_id: "homing-agent".into(),
        }
    }

    fn services(&self, authority: &str, with_capabilities: bool) -> device::Services {
        let service = |namespace: &str, path: &str, capabilities: Element| device::Service {
            namespace: namespace.into(),
            xaddr: format!("http://{authority}{path}"),
            capabilities: with_capabilities.then_some(capabilities),
            version: ONVIF_VERSION,
        };
        device::Services(vec![
            service(DEVICE_NS, DEVICE_PATH, device_capabilities().element()),
            service(MEDIA2_NS, MEDIA2_PATH, self.media_capabilities().element()),
            service(UPLINK_NS, UPLINK_PATH, uplink_capabilities().element()),
            service(SECURITY_NS, SECURITY_PATH, security_capabilities().element()),
        ])
    }

    fn media_capabilities(&self) -> media2::ServiceCapabilities {
        media2::ServiceCapabilities {
            rtsp_streaming: true,
            rtp_rtsp_tcp: true,
            rtsp_web_socket_uri: Some(rtsp::PATH.into()),
            snapshot_uri: false,
            maximum_number_of_profiles: self.cameras.list().len() as u32,
        }
    }

    /// One profile per camera, each a channel of its own. How it is encoded only the stream itself says.
    fn profiles(&self, token: Option<&str>) -> Result<media2::Profiles, Fault> {
        let profiles: Vec<media2::Profile> = self
            .cameras
            .list()
            .iter()
            .map(|camera| {
                let number = camera.index + 1;
                media2::Profile {
                    token: format!("profile-{number}"),
                    name: camera.name.clone(),
                    video_source: Some(media2::VideoSource {
                        token: format!("source-configuration-{number}"),
                        name: camera.name.clone(),
                        source_token: format!("source-{number}"),
                        size: (0, 0),
                    }),
                    ..media2::Profile::default()
                }
            })
            .filter(|profile| token.is_none_or(|token| profile.token == token))
            .collect();
        if profiles.is_empty() {
            Err(no_profile(token.unwrap_or_default()))
        } else {
            Ok(media2::Profiles(profiles))
        }
    }

    fn stream_uri(&self, ask: &media2::GetStreamUri) -> Result<media2::StreamUri, Fault> {
        let index =
            ask.profile_token.strip_prefix("profile-").and_then(|number| number.parse::<usize>().ok());
        index
            .and_then(|number| self.cameras.list().get(number.checked_sub(1)?))
            .map(|camera| media2::StreamUri(camera.rtsp.to_string()))
            .ok_or_else(|| no_profile(&ask.profile_token))
    }

    async fn uplinks(&self) -> uplink::Uplinks {
        let kept = self.store.kept().await;
        let status = self.status.borrow().clone();
        let configuration = |stored: &crate::store::StoredUplink| {
            let shown = status.uplinks.iter().find(|uplink| uplink.address == stored.address);
            uplink::Configuration {
                remote_address: stored.address.clone(),
                certificate_id: Some(DEVICE_CERTIFICATE_ID.into()),
                user_level: stored.user_level.clone(),
                status: shown.and_then(|shown| shown.state.parse().ok()),
                cert_path_validation_policy_id: Some(stored.policy.clone())
                    .filter(|policy| !policy.is_empty()),
                authorization_server: None,
                error: shown.and_then(|shown| shown.error.clone()),
            }
        };
        uplink::Uplinks(kept.uplinks.iter().map(configuration).collect())
    }

    /// Step 5, the end of it: what is stored here is dialled in step 6.
    async fn set_uplink(
        &self,
        configuration: uplink::Configuration,
        peer: &Peer,
    ) -> Result<uplink::UplinkSet, Fault> {
        let (address, changed) = self.store.change(|kept| kept.set_uplink(configuration)).await?;
        tracing::info!(step = %Step::Dispatch, address, by = ?peer, "told where to dial");
        self.tell(Event::UplinkSet { address, changed, by: peer.clone() }).await;
        Ok(uplink::UplinkSet)
    }

    async fn delete_uplink(&self, address: &str) -> Result<uplink::UplinkDeleted, Fault> {
        let address = self.store.change(|kept| kept.delete_uplink(address)).await?;
        tracing::info!(address, "told not to dial any more");
        self.tell(Event::UplinkDeleted { address }).await;
        Ok(uplink::UplinkDeleted)
    }

    async fn upload_certificate(
        &self,
        ask: security::UploadCertificate,
    ) -> Result<security::CertificateUploaded, Fault> {
        if ask.private_key_required {
            return Err(Fault::sender(
                &["InvalidArgVal", "NoMatchingPrivateKey"],
                "the device holds the key of its own certificate alone",
            ));
        }
        let certificate_id = self.store.change(|kept| kept.upload(&ask.certificate, ask.alias)).await?;
        tracing::info!(step = %Step::Dispatch, certificate_id, "got a trust anchor");
        let key_id = format!("key-{certificate_id}");
        Ok(security::CertificateUploaded { certificate_id, key_id })
    }

    async fn certificates(&self) -> security::Certificates {
        let own = security::Certificate {
            certificate_id: DEVICE_CERTIFICATE_ID.into(),
            key_id: format!("key-{DEVICE_CERTIFICATE_ID}"),
            alias: Some("this device".into()),
            content: self.identity.certificate.to_vec(),
            has_private_key: true,
        };
        let kept = self.store.kept().await;
        let uploaded = kept.anchors.iter().map(|anchor| security::Certificate {
            certificate_id: anchor.id.clone(),
            key_id: format!("key-{}", anchor.id),
            alias: anchor.alias.clone(),
            content: anchor.der().to_vec(),
            has_private_key: false,
        });
        security::Certificates(std::iter::once(own).chain(uploaded).collect())
    }

    async fn policies(&self) -> security::Policies {
        let kept = self.store.kept().await;
        let policy = |policy: &crate::store::Policy| security::Policy {
            policy_id: policy.id.clone(),
            alias: policy.alias.clone(),
            trust_anchors: policy.anchors.clone(),
        };
        security::Policies(kept.policies.iter().map(policy).collect())
    }

    async fn tell(&self, event: Event) {
        // The loop that reads it ends only with the agent, which ends this request too.
        let _ = self.events.send(event).await;
    }
}

fn device_capabilities() -> device::ServiceCapabilities {
    device::ServiceCapabilities { http_digest: true, username_token: true }
}

fn uplink_capabilities() -> uplink::ServiceCapabilities {
    uplink::ServiceCapabilities {
        max_uplinks: MAX_UPLINKS as u32,
        protocols: vec!["https".into(), "wss".into()],
        authorization_modes: vec!["mTLS".into()],
        streaming_over_uplink: true,
    }
}

fn security_capabilities() -> security::ServiceCapabilities {
    security::ServiceCapabilities {
        maximum_number_of_certificates: MAX_CERTIFICATES as u32,
        maximum_number_of_policies: MAX_POLICIES as u32,
    }
}

fn no_profile(token: &str) -> Fault {
    let token: String = token.chars().take(64).collect();
    Fault::sender(&["InvalidArgVal", "NoProfile"], format!("no profile {token:?}"))
}

/// How the asker calls this device.
fn authority_of(head: &Parts) -> String {
    let from_host = || head.headers.get(header::HOST)?.to_str().ok().map(str::to_owned);
    head.uri.authority().map(|a| a.to_string()).or_else(from_host).unwrap_or_else(|| "device".into())
}

fn status_of(fault: &Fault) -> StatusCode {
    StatusCode::from_u16(fault.http_status()).expect("400 or 500")
}

fn soap_fault(version: SoapVersion, fault: &Fault, status: StatusCode) -> Response<Bytes> {
    soap(version, status, &fault.to_xml(version))
}

fn soap(version: SoapVersion, status: StatusCode, xml: &str) -> Response<Bytes> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, version.content_type())
        .body(Bytes::copy_from_slice(xml.as_bytes()))
        .expect("constants")
}

fn plain(status: StatusCode, text: &'static str) -> Response<Bytes> {
    let builder =
        Response::builder().status(status).header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
    builder.body(Bytes::from_static(text.as_bytes())).expect("constants")
}
