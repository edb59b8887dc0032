//! A scripted device: dials with `homing-uplink`, answers what steps 5 to 8 ask, in as few lines as that takes.
//!
//! It is not the site agent: it does what a test tells it, wrong things too, and nothing by itself. The
//! tunnel server's tests use it as well.

use bytes::Bytes;
use homing_protocol::{
    Oak, SerialNumber,
    digest::{DigestGuard, Refusal},
    oak::{EXPORTER_LABEL, PROOF_PATH, ProofAnswer, ProofRequest},
    onvif::{self, DeviceRequest, Message, device, media2, security, uplink},
    soap::{CONTENT_TYPE, Envelope, Fault, SoapVersion},
};
use homing_uplink::{
    DialError, Dialer, EndReason, Fingerprint, Incoming, ServeSettings, TlsPolicy, Uplink, client_tls_config,
    roots_from_pem,
};
use http::{Response, StatusCode, header};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub const USER: &str = "root";
pub const PASSWORD: &str = "p4ss of the camera";
/// How the device calls the certificate that it dials with.
const OWN_CERTIFICATE: &str = "factory";

/// What a device does otherwise than it should.
#[derive(Clone, Default)]
pub struct Quirks {
    /// What GetDeviceInformation says.
    pub tells_serial: Option<String>,
    /// GetServices does not list it.
    pub lacks: Option<&'static str>,
    /// It never answers the challenge.
    pub silent: bool,
    /// It gives another device's proof for its own.
    pub borrows: Option<Borrowed>,
}

/// Where a thief has a proof from.
#[derive(Clone)]
pub enum Borrowed {
    /// Seen on another connection.
    Seen(ProofAnswer),
    /// Asked for now, of the true device, by who stands between it and the dispatcher.
    Asked(Uplink),
}

pub struct Device {
    pub serial: SerialNumber,
    pub oak: Oak,
    pub password: String,
    pub quirks: Quirks,
    pub certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    guard: DigestGuard,
    stored: Mutex<Vec<security::Certificate>>,
    policies: Mutex<Vec<security::Policy>>,
    /// It was asked for its proof, and is silent.
    pub asked: Notify,
    /// The last proof that it gave.
    pub proof: Mutex<Option<ProofAnswer>>,
    /// How often it gave its proof.
    pub proofs: AtomicUsize,
    /// What SetUplink brought.
    pub uplinks: watch::Sender<Vec<uplink::Configuration>>,
}

impl Device {
    pub fn new(serial: SerialNumber, oak: Oak, password: &str, quirks: Quirks) -> Arc<Device> {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CustomDnType(vec![2, 5, 4, 5]), serial.to_string());
        Device::with_certificate(serial, oak, password, quirks, params, pair)
    }

    pub fn with_certificate(
        serial: SerialNumber,
        oak: Oak,
        password: &str,
        quirks: Quirks,
        params: rcgen::CertificateParams,
        pair: rcgen::KeyPair,
    ) -> Arc<Device> {
        let certificate: CertificateDer<'static> = params.self_signed(&pair).unwrap().der().clone();
        let own = security::Certificate {
            certificate_id: OWN_CERTIFICATE.into(),
            key_id: "key".into(),
            alias: None,
            content: certificate.to_vec(),
            has_private_key: true,
        };
        Arc::new(Device {
            serial,
            oak,
            password: password.to_owned(),
            quirks,
            certificate,
            key: PrivateKeyDer::try_from(pair.serialize_der()).unwrap(),
            guard: DigestGuard::new("camera", [7; 32]),
            stored: Mutex::new(vec![own]),
            policies: Mutex::default(),
            asked: Notify::new(),
            proof: Mutex::default(),
            proofs: AtomicUsize::new(0),
            uplinks: watch::Sender::default(),
        })
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_certificate(&self.certificate).unwrap()
    }

    fn dialer(&self, address: &str, trust_pem: &str) -> Dialer {
        let roots = roots_from_pem(trust_pem.as_bytes()).unwrap();
        let chain = vec![self.certificate.clone()];
        let tls = client_tls_config(roots, chain, self.key.clone_key(), TlsPolicy::Tls13).unwrap();
        Dialer::new(address.parse().unwrap(), Arc::new(tls))
    }

    /// Dials and serves until the other end closes, or until `stop`.
    pub async fn dial(
        self: &Arc<Self>,
        address: &str,
        trust_pem: &str,
        stop: &CancellationToken,
    ) -> Result<JoinHandle<EndReason>, DialError> {
        let dialed = self.dialer(address, trust_pem).dial().await?;
        let device = self.clone();
        let service = Arc::new(move |incoming: Incoming| {
            let device = device.clone();
            async move { device.answer(incoming).await }
        });
        let stop = stop.clone();
        #[expect(clippy::disallowed_methods, reason = "the test holds the handle")]
        Ok(tokio::spawn(async move { dialed.serve(service, ServeSettings::default(), stop).await }))
    }

    #[allow(dead_code, reason = "for the tunnel server's tests")]
    /// Step 6: leaves for where SetUplink said, trusting what the policy says.
    pub async fn connect(
        self: &Arc<Self>,
        stop: &CancellationToken,
    ) -> Result<JoinHandle<EndReason>, DialError> {
        let mut set = self.uplinks.subscribe();
        let told = tokio::time::timeout(Duration::from_secs(10), set.wait_for(|set| !set.is_empty()));
        let configuration = told.await.expect("SetUplink within 10 s").unwrap()[0].clone();
        assert_eq!(configuration.certificate_id.as_deref(), Some(OWN_CERTIFICATE));
        let anchors = self.trusted_by(configuration.cert_path_validation_policy_id.as_deref().unwrap());
        self.dial(&configuration.remote_address, &anchors, stop).await
    }

    /// PEM of what a policy trusts.
    pub fn trusted_by(&self, policy: &str) -> String {
        let policies = self.policies.lock().unwrap();
        let policy = policies.iter().find(|known| known.policy_id == policy).expect("a policy of that name");
        let stored = self.stored.lock().unwrap();
        let anchors = stored.iter().filter(|known| policy.trust_anchors.contains(&known.certificate_id));
        anchors.map(|anchor| pem(&anchor.content)).collect()
    }

    /// How many certificates and policies it keeps.
    pub fn kept(&self) -> (usize, usize) {
        (self.stored.lock().unwrap().len(), self.policies.lock().unwrap().len())
    }

    async fn answer(&self, incoming: Incoming) {
        let path = incoming.request.uri().path().to_owned();
        if incoming.protocol() == Some("websocket") {
            return echo(incoming, &path).await;
        }
        match path.as_str() {
            PROOF_PATH if self.quirks.silent => {
                self.asked.notify_one();
                std::future::pending().await
            }
            PROOF_PATH => self.prove(incoming).await,
            "/stream" => stream(incoming).await,
            "/echo" => upload(incoming).await,
            "/hello" => {
                let headers = format!("{:?}", incoming.request.headers());
                let _ = incoming.respond(Response::new(headers.into()));
            }
            "/never" => std::future::pending().await,
            _ => self.onvif(incoming).await,
        }
    }

    async fn prove(&self, mut incoming: Incoming) {
        self.proofs.fetch_add(1, Ordering::SeqCst);
        let body = std::mem::take(incoming.request.body_mut()).collect(4096).await.unwrap();
        let answer = match &self.quirks.borrows {
            None => self.own_proof(&incoming, &body).await,
            Some(Borrowed::Seen(answer)) => answer.clone(),
            Some(Borrowed::Asked(uplink)) => {
                let question = http::Request::post(PROOF_PATH).header(header::HOST, self.serial.host());
                let answer = uplink.request(question.body(body).unwrap()).await.unwrap().into_body();
                serde_json::from_slice(&answer.collect(4096).await.unwrap()).unwrap()
            }
        };
        *self.proof.lock().unwrap() = Some(answer.clone());
        let _ = incoming.respond(Response::new(serde_json::to_vec(&answer).unwrap().into()));
    }

    async fn own_proof(&self, incoming: &Incoming, question: &[u8]) -> ProofAnswer {
        let question: ProofRequest = serde_json::from_slice(question).unwrap();
        let exporter = incoming.uplink.exporter.export(EXPORTER_LABEL, b"").unwrap();
        let (oak, serial) = (self.oak.clone(), self.serial);
        let key = tokio::task::spawn_blocking(move || oak.proof_key(serial)).await.unwrap();
        ProofAnswer { serial, proof: key.prove(serial, &question.challenge, &exporter) }
    }

    async fn onvif(&self, mut incoming: Incoming) {
        let body = std::mem::take(incoming.request.body_mut()).collect(1 << 18).await.unwrap();
        let Ok(envelope) = Envelope::parse(&body) else {
            let mut missing = Response::new(Bytes::from_static(b"no such page"));
            *missing.status_mut() = StatusCode::NOT_FOUND;
            let _ = incoming.respond(missing);
            return;
        };
        let question = match DeviceRequest::parse(&envelope) {
            Ok(question) => question,
            Err(fault) => return answer_fault(incoming, &fault),
        };
        if question.access() > onvif::AccessClass::PreAuth
            && let Err(refusal) = self.check(&incoming)
        {
            let mut response =
                Response::new(Bytes::from(Fault::not_authorized("log in").to_xml(SoapVersion::V12)));
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            for challenge in self.guard.challenges(0, refusal == Refusal::Stale) {
                response.headers_mut().append(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
            }
            let _ = incoming.respond(response);
            return;
        }
        match self.obey(question) {
            Ok(answer) => {
                let mut response = Response::new(Bytes::from(Envelope::new(answer).to_xml()));
                response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE.parse().unwrap());
                let _ = incoming.respond(response);
            }
            Err(fault) => answer_fault(incoming, &fault),
        }
    }

    fn check(&self, incoming: &Incoming) -> Result<(), Refusal> {
        let authorization = incoming.request.headers().get(header::AUTHORIZATION);
        let authorization = authorization.map(|value| value.to_str().unwrap());
        let path = incoming.request.uri().path();
        let password = |user: &str| (user == USER).then(|| self.password.as_str().into());
        self.guard.check(incoming.request.method().as_str(), path, authorization, password, 0).map(drop)
    }

    fn obey(&self, question: DeviceRequest) -> Result<homing_protocol::soap::Element, Fault> {
        Ok(match question {
            DeviceRequest::GetDeviceInformation(_) => {
                let serial = self.quirks.tells_serial.clone().unwrap_or(self.serial.to_string());
                device::DeviceInformation {
                    serial_number: serial,
                    model: "scripted".into(),
                    ..Default::default()
                }
                .to_element()
            }
            DeviceRequest::GetServices(_) => {
                let known = [
                    (onvif::DEVICE_NS, onvif::DEVICE_PATH),
                    (onvif::SECURITY_NS, onvif::SECURITY_PATH),
                    (onvif::UPLINK_NS, onvif::UPLINK_PATH),
                    (onvif::MEDIA2_NS, onvif::MEDIA2_PATH),
                ];
                let service = |(namespace, path): (&str, &str)| device::Service {
                    namespace: namespace.into(),
                    xaddr: format!("http://192.168.0.90{path}"),
                    capabilities: None,
                    version: (26, 6),
                };
                let known = known.into_iter().filter(|(namespace, _)| self.quirks.lacks != Some(namespace));
                device::Services(known.map(service).collect()).to_element()
            }
            DeviceRequest::GetMediaServiceCapabilities(_) => media2::ServiceCapabilities {
                rtsp_streaming: true,
                rtsp_web_socket_uri: Some("ws://192.168.0.90/rtsp-over-websocket".into()),
                ..Default::default()
            }
            .to_element(),
            DeviceRequest::GetAllCertificates(_) => {
                security::Certificates(self.stored.lock().unwrap().clone()).to_element()
            }
            DeviceRequest::UploadCertificate(upload) => {
                let mut stored = self.stored.lock().unwrap();
                let id = format!("certificate-{}", stored.len());
                stored.push(security::Certificate {
                    certificate_id: id.clone(),
                    key_id: id.clone(),
                    alias: upload.alias,
                    content: upload.certificate,
                    has_private_key: false,
                });
                security::CertificateUploaded { certificate_id: id.clone(), key_id: id }.to_element()
            }
            DeviceRequest::GetAllCertPathValidationPolicies(_) => {
                security::Policies(self.policies.lock().unwrap().clone()).to_element()
            }
            DeviceRequest::CreateCertPathValidationPolicy(create) => {
                let mut policies = self.policies.lock().unwrap();
                let policy_id = format!("policy-{}", policies.len());
                let (alias, trust_anchors) = (create.alias, create.trust_anchors);
                policies.push(security::Policy { policy_id: policy_id.clone(), alias, trust_anchors });
                security::PolicyCreated { policy_id }.to_element()
            }
            DeviceRequest::SetUplink(set) => {
                self.uplinks.send_modify(|uplinks| {
                    uplinks.retain(|known| known.remote_address != set.0.remote_address);
                    uplinks.push(set.0);
                });
                uplink::UplinkSet.to_element()
            }
            other => return Err(Fault::receiver(&["ActionNotSupported"], other.name())),
        })
    }
}

fn answer_fault(incoming: Incoming, fault: &Fault) {
    let mut response = Response::new(Bytes::from(fault.to_xml(SoapVersion::V12)));
    *response.status_mut() = StatusCode::from_u16(fault.http_status()).unwrap();
    let _ = incoming.respond(response);
}

/// 1 MiB in pieces that differ, for as long as it is read.
async fn stream(incoming: Incoming) {
    let Ok(mut body) = incoming.respond_streaming(Response::new(())) else { return };
    for index in 0..64u8 {
        if body.send(Bytes::from(vec![index; 16 * 1024])).await.is_err() {
            return;
        }
    }
    let _ = body.finish();
}

/// Sends back what is sent, while it is sent.
async fn upload(mut incoming: Incoming) {
    let mut received = std::mem::take(incoming.request.body_mut());
    let Ok(mut body) = incoming.respond_streaming(Response::new(())) else { return };
    while let Some(Ok(chunk)) = received.next().await {
        if body.send(chunk).await.is_err() {
            return;
        }
    }
    let _ = body.finish();
}

async fn echo(incoming: Incoming, path: &str) {
    if path != "/rtsp-over-websocket" || !incoming.subprotocols().any(|offered| offered == "rtsp.onvif.org") {
        let mut refusal = Response::new(Bytes::from_static(b"no RTSP here"));
        *refusal.status_mut() = StatusCode::NOT_FOUND;
        let _ = incoming.respond(refusal);
        return;
    }
    let Ok(mut socket) = incoming.accept_websocket("rtsp.onvif.org") else { return };
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = socket.read(&mut buffer).await {
        if socket.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = socket.shutdown().await;
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).unwrap());
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}
