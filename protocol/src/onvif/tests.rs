//! Golden messages as other people's clients and devices write them, and everything there and back.

use super::{
    device::*,
    media2::{
        AudioEncoder, GetProfiles, GetStreamUri, Profile, Profiles, StreamUri, VideoEncoder, VideoSource,
    },
    security::*,
    uplink::{
        Configuration, ConnectionStatus, DeleteUplink, GetUplinks, SetUplink, UplinkDeleted, UplinkSet,
        Uplinks,
    },
    *,
};
use crate::soap::{FaultCode, SoapVersion};
use std::fmt::Debug;

fn there_and_back<M: Message + PartialEq + Debug>(message: M) {
    let element = message.to_element();
    assert!(element.is(M::NAMESPACE, M::NAME));
    let xml = Envelope::new(element).to_xml();
    let body = Envelope::parse(xml.as_bytes()).unwrap().body;
    assert_eq!(M::from_element(&body).unwrap(), message, "{xml}");
}

fn parse(xml: &str) -> Result<DeviceRequest, Fault> {
    DeviceRequest::parse(&Envelope::parse(xml.as_bytes()).unwrap())
}

#[test]
fn every_message_there_and_back() {
    there_and_back(GetDeviceInformation);
    there_and_back(DeviceInformation {
        manufacturer: "Müller & Söhne".into(),
        model: "<Kamera>".into(),
        firmware_version: "1.2".into(),
        serial_number: "00408C702009".into(),
        hardware_id: "7".into(),
    });
    let utc = "2026-02-28T23:59:58Z".parse().unwrap();
    there_and_back(SystemDateAndTime::kept_by_ntp(utc));
    there_and_back(SystemDateAndTime { utc: None, by_ntp: false, daylight_savings: true });
    there_and_back(SetSystemDateAndTime { utc, daylight_savings: true });
    there_and_back(device::SetUser { user: crate::secret::Credentials::new("root", "p<&>ss") });
    there_and_back(device::UserSet);
    there_and_back(device::SystemReboot);
    there_and_back(device::Rebooting { message: "Rebooting in 30 seconds".into() });
    there_and_back(GetServices { include_capability: true });
    let media = media2::ServiceCapabilities {
        rtsp_streaming: true,
        rtp_rtsp_tcp: true,
        rtsp_web_socket_uri: Some("/onvif/rtsp?a=1&b=2".into()),
        snapshot_uri: false,
        maximum_number_of_profiles: 4,
    };
    there_and_back(Services(vec![
        Service {
            namespace: MEDIA2_NS.into(),
            xaddr: "http://192.168.1.9/onvif/media2_service".into(),
            capabilities: Some(media.element()),
            version: (26, 6),
        },
        Service { namespace: DEVICE_NS.into(), xaddr: "/x".into(), capabilities: None, version: (0, 0) },
    ]));
    there_and_back(media);
    there_and_back(media2::ServiceCapabilities::default());
    there_and_back(Capabilities {
        device_xaddr: "http://c/d".into(),
        media_xaddr: Some("http://c/m".into()),
    });
    there_and_back(device::ServiceCapabilities { http_digest: true, username_token: false });

    there_and_back(GetProfiles::all());
    there_and_back(GetProfiles { token: Some("p1".into()), types: vec![] });
    there_and_back(Profiles(vec![
        Profile {
            token: "p1".into(),
            name: "Main".into(),
            video_source: Some(VideoSource {
                token: "vs".into(),
                name: "Source".into(),
                source_token: "ch1".into(),
                size: (640, 360),
            }),
            video_encoder: Some(VideoEncoder {
                token: "ve".into(),
                name: "Encoder".into(),
                encoding: "H264".into(),
                size: (640, 360),
                rate_limit: Some((25, 500)),
            }),
            audio_encoder: Some(AudioEncoder {
                token: "ae".into(),
                name: "Audio".into(),
                encoding: "PCMU".into(),
                bitrate_kbps: 64,
                sample_rate_khz: 8,
            }),
        },
        Profile { token: "p2".into(), name: "Bare".into(), ..Profile::default() },
    ]));
    there_and_back(GetStreamUri::rtsp("p1"));
    there_and_back(GetStreamUri::rtsp_over_http("p1"));
    there_and_back(media::GetProfiles);
    there_and_back(media::Profiles(vec!["p1".into(), "p2".into()]));
    there_and_back(media::GetStreamUri::rtsp_over_http("p1"));
    there_and_back(media::StreamUri("http://cam/a?b=1&c=2".into()));
    there_and_back(StreamUri("rtsp://cam:554/a?b=1&c=2".into()));

    there_and_back(uplink::ServiceCapabilities {
        max_uplinks: 8,
        protocols: vec!["https".into(), "wss".into()],
        authorization_modes: vec!["mTLS".into()],
        streaming_over_uplink: true,
    });
    let configuration = Configuration {
        remote_address: "https://sts.example:8443/".into(),
        certificate_id: Some("device".into()),
        user_level: vec!["Administrator".into()],
        status: Some(ConnectionStatus::Connecting),
        cert_path_validation_policy_id: Some("policy-1".into()),
        authorization_server: None,
        error: Some("no route to host".into()),
    };
    there_and_back(GetUplinks);
    there_and_back(Uplinks(vec![configuration.clone(), Configuration::default()]));
    there_and_back(SetUplink(configuration));
    there_and_back(UplinkSet);
    there_and_back(DeleteUplink { remote_address: "https://sts.example/".into() });
    there_and_back(UplinkDeleted);

    there_and_back(security::ServiceCapabilities {
        maximum_number_of_certificates: 16,
        maximum_number_of_policies: 8,
    });
    there_and_back(UploadCertificate {
        certificate: vec![0x30, 0x82, 0xFF],
        alias: Some("anchor".into()),
        private_key_required: false,
    });
    there_and_back(CertificateUploaded { certificate_id: "c".into(), key_id: "k".into() });
    there_and_back(Certificates(vec![Certificate {
        certificate_id: "c".into(),
        key_id: "k".into(),
        alias: None,
        content: vec![1, 2, 3],
        has_private_key: true,
    }]));
    there_and_back(DeleteCertificate { certificate_id: "c".into() });
    there_and_back(CertificateDeleted);
    there_and_back(CreateCertPathValidationPolicy {
        alias: Some("sts".into()),
        trust_anchors: vec!["c".into(), "d".into()],
    });
    there_and_back(PolicyCreated { policy_id: "p".into() });
    there_and_back(Policies(vec![Policy {
        policy_id: "p".into(),
        alias: None,
        trust_anchors: vec!["c".into()],
    }]));
    there_and_back(DeleteCertPathValidationPolicy { policy_id: "p".into() });
    there_and_back(PolicyDeleted);
}

/// python-onvif-zeep: prefixes soap-env and ns0, a WS-Security header.
#[test]
fn requests_from_a_python_client() {
    let request = parse(
        r#"<?xml version='1.0' encoding='utf-8'?>
        <soap-env:Envelope xmlns:soap-env="http://www.w3.org/2003/05/soap-envelope"><soap-env:Header>
        <wsse:Security xmlns:wsse="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd">
        <wsse:UsernameToken><wsse:Username>root</wsse:Username></wsse:UsernameToken></wsse:Security></soap-env:Header>
        <soap-env:Body><ns0:GetStreamUri xmlns:ns0="http://www.onvif.org/ver20/media/wsdl">
        <ns0:Protocol>RTSP</ns0:Protocol><ns0:ProfileToken>profile-1</ns0:ProfileToken></ns0:GetStreamUri>
        </soap-env:Body></soap-env:Envelope>"#,
    )
    .unwrap();
    assert_eq!(request, DeviceRequest::GetStreamUri(GetStreamUri::rtsp("profile-1")));
    assert_eq!(request.access(), AccessClass::ReadMedia);
    assert_eq!(request.name(), "GetStreamUri");
}

/// gSOAP: a hundred namespaces on the root, the request empty.
#[test]
fn requests_from_a_gsoap_client() {
    let namespaces: String = (0..90).map(|n| format!("\n xmlns:ns{n}=\"http://example.com/{n}\"")).collect();
    let request = parse(&format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
        <SOAP-ENV:Envelope xmlns:SOAP-ENV="http://www.w3.org/2003/05/soap-envelope"
        xmlns:tds="http://www.onvif.org/ver10/device/wsdl"{namespaces}><SOAP-ENV:Body>
        <tds:GetDeviceInformation></tds:GetDeviceInformation></SOAP-ENV:Body></SOAP-ENV:Envelope>"#
    ))
    .unwrap();
    assert_eq!(request, DeviceRequest::GetDeviceInformation(GetDeviceInformation));
    assert_eq!(request.access(), AccessClass::ReadSystem);
}

/// ONVIF Device Manager: default namespaces, SOAP 1.2, `xsi` and `xsd` declared inside.
#[test]
fn requests_from_a_dotnet_client() {
    let request = parse(
        r#"<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"><s:Body
        xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">
        <SetUplink xmlns="http://www.onvif.org/ver10/uplink/wsdl"><Configuration>
        <RemoteAddress>https://sts.example:8443/up?a=1&amp;b=2</RemoteAddress>
        <CertificateID>device</CertificateID><UserLevel>Administrator Operator</UserLevel>
        <Status>Connected</Status><CertPathValidationPolicyID>p</CertPathValidationPolicyID>
        <Vendor xmlns="urn:v">?</Vendor></Configuration></SetUplink></s:Body></s:Envelope>"#,
    )
    .unwrap();
    assert_eq!(request.access(), AccessClass::WriteSystem);
    let DeviceRequest::SetUplink(SetUplink(configuration)) = request else { panic!("{request:?}") };
    assert_eq!(configuration.remote_address, "https://sts.example:8443/up?a=1&b=2");
    assert_eq!(configuration.user_level, ["Administrator", "Operator"]);
    assert_eq!(configuration.status, Some(ConnectionStatus::Connected));
    assert_eq!(configuration.cert_path_validation_policy_id.as_deref(), Some("p"));
}

/// A certificate arrives folded, as OpenSSL prints base64.
#[test]
fn base64_with_line_breaks() {
    let request = parse(
        r#"<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body>
        <a:UploadCertificate xmlns:a="http://www.onvif.org/ver10/advancedsecurity/wsdl"><a:Certificate>
        AQID
        BAUG
        </a:Certificate></a:UploadCertificate></e:Body></e:Envelope>"#,
    )
    .unwrap();
    let DeviceRequest::UploadCertificate(upload) = request else { panic!("{request:?}") };
    assert_eq!(upload.certificate, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn what_a_device_cannot_answer_is_a_fault() {
    let envelope = |body: &str| {
        format!(
            r#"<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"><e:Body>{body}</e:Body></e:Envelope>"#
        )
    };
    let fault = parse(&envelope(r#"<Reboot xmlns="urn:x"/>"#)).unwrap_err();
    assert_eq!(fault.code, FaultCode::Receiver);
    assert!(fault.has_subcode("ActionNotSupported"));
    let fault =
        parse(&envelope(r#"<SetUplink xmlns="http://www.onvif.org/ver10/uplink/wsdl"/>"#)).unwrap_err();
    assert_eq!(fault.to_string(), "SetUplink: no Configuration (InvalidArgs)");
    // The name alone does not make the request: GetProfiles of the old media service is another one.
    assert!(parse(&envelope(r#"<GetProfiles xmlns="http://www.onvif.org/ver10/media/wsdl"/>"#)).is_err());
}

#[test]
fn a_client_reads_answers_and_tells_faults_apart() {
    let answer = r#"<?xml version="1.0" encoding="UTF-8"?>
        <env:Envelope xmlns:env="http://www.w3.org/2003/05/soap-envelope" xmlns:tds="http://www.onvif.org/ver10/device/wsdl">
        <env:Body><tds:GetDeviceInformationResponse><tds:Manufacturer>AXIS</tds:Manufacturer><tds:Model>P3245</tds:Model>
        <tds:FirmwareVersion>11.1</tds:FirmwareVersion><tds:SerialNumber>ACCC8E012345</tds:SerialNumber>
        <tds:HardwareId>77F</tds:HardwareId></tds:GetDeviceInformationResponse></env:Body></env:Envelope>"#;
    let information = GetDeviceInformation::parse_answer(answer.as_bytes()).unwrap();
    assert_eq!(information.serial_number, "ACCC8E012345");
    assert_eq!(
        GetServices::parse_answer(answer.as_bytes()).unwrap_err().to_string(),
        "expected GetServicesResponse, found GetDeviceInformationResponse"
    );
    let fault = Fault::not_authorized("Sender not Authorized").to_xml(SoapVersion::V12);
    assert!(matches!(
        GetDeviceInformation::parse_answer(fault.as_bytes()),
        Err(CallError::Fault(fault)) if fault.has_subcode("NotAuthorized")
    ));
    assert!(matches!(GetUplinks::parse_answer(b"<html>"), Err(CallError::Soap(_))));
    assert_eq!(GetUplinks::action(), "http://www.onvif.org/ver10/uplink/wsdl/GetUplinks");
}

#[test]
fn of_an_address_behind_a_nat_only_the_path_counts() {
    for (address, path) in [
        ("http://192.168.0.90/onvif/media2?x=1", "/onvif/media2?x=1"),
        ("ws://192.168.0.90:80/rtsp", "/rtsp"),
        ("http://192.168.0.90", "/"),
        ("/rtsp-over-websocket", "/rtsp-over-websocket"),
        (" onvif/uplink ", "/onvif/uplink"),
        ("//192.168.0.90/onvif/a//b", "/onvif/a//b"),
        ("/onvif//media", "/onvif//media"),
        ("http://192.168.0.90?media", "/?media"),
        ("", "/"),
    ] {
        assert_eq!(path_of(address), path);
    }
}
