//! Media1 (`trt`): ONVIF Media Service Specification §5. Of devices that have no Media2, as far as it takes to find RTSP
//! over HTTP.

use super::{Invalid, MEDIA_NS as NS, Message, SCHEMA_NS as TT, empty_message, requests, required};
use crate::soap::Element;

empty_message! {
    /// Asks for the profiles.
    GetProfiles, NS, "GetProfiles";
}

requests! {
    GetProfiles => Profiles, ReadMedia;
    GetStreamUri => StreamUri, ReadMedia;
}

/// The answer to [`GetProfiles`]: their tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiles(pub Vec<String>);

impl Message for Profiles {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetProfilesResponse";

    fn to_element(&self) -> Element {
        let profiles = self.0.iter().map(|token| Element::new(NS, "Profiles").attribute("token", token));
        Element::new(NS, Self::NAME).with_children(profiles)
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let tokens = element.find_all(NS, "Profiles").filter_map(|profile| profile.get_attribute("token"));
        Ok(Profiles(tokens.filter(|token| !token.is_empty()).map(str::to_owned).collect()))
    }
}

/// Asks for the address of a profile's unicast stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetStreamUri {
    /// `HTTP` for RTP over RTSP over HTTP.
    pub protocol: String,
    /// The profile.
    pub profile_token: String,
}

impl GetStreamUri {
    /// RTP over RTSP over HTTP (ONVIF Streaming Specification §5.1.1.4).
    pub fn rtsp_over_http(profile_token: impl Into<String>) -> Self {
        GetStreamUri { protocol: "HTTP".into(), profile_token: profile_token.into() }
    }
}

impl Message for GetStreamUri {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetStreamUri";

    fn to_element(&self) -> Element {
        let transport =
            Element::new(TT, "Transport").child(Element::with_text(TT, "Protocol", &self.protocol));
        let setup = Element::new(NS, "StreamSetup")
            .child(Element::with_text(TT, "Stream", "RTP-Unicast"))
            .child(transport);
        let profile = Element::with_text(NS, "ProfileToken", &self.profile_token);
        Element::new(NS, Self::NAME).child(setup).child(profile)
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let transport = element.find(NS, "StreamSetup").and_then(|setup| setup.find(TT, "Transport"));
        let transport = transport.ok_or_else(|| Invalid::new::<Self>("no Transport"))?;
        Ok(GetStreamUri {
            protocol: required::<Self>(transport, TT, "Protocol")?,
            profile_token: required::<Self>(element, NS, "ProfileToken")?,
        })
    }
}

/// The answer to [`GetStreamUri`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamUri(pub String);

impl Message for StreamUri {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetStreamUriResponse";

    fn to_element(&self) -> Element {
        let uri = Element::new(NS, "MediaUri").child(Element::with_text(TT, "Uri", &self.0));
        Element::new(NS, Self::NAME).child(uri)
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let uri = element.find(NS, "MediaUri").ok_or_else(|| Invalid::new::<Self>("no MediaUri"))?;
        required::<Self>(uri, TT, "Uri").map(StreamUri)
    }
}
