//! Who may use the API: keys by `Authorization: Bearer`, `X-API-Key` or `api-key`, known by their
//! hashes. The configuration lists a few for a first start; the others have a record in the `keys` bucket.

use data_encoding::HEXLOWER_PERMISSIVE;
use emberline_api::models::ModelNames;
use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::key::{self, KeyId, KeyLimits, KeyRecord, KeyState};
use emberline_protocol::malformed::Malformed;
use emberline_protocol::subject;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::{Choice, ConstantTimeEq};

/// SHA-256 hashes of the accepted keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyHashes(Vec<[u8; 32]>);

/// The key of a request, as its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Credential([u8; 32]);

/// Who asks, and what they may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Their key.
    pub key: KeyId,
    /// Models that they may use, by the models' own names or by aliases; `None` for all.
    pub models: Option<Vec<String>>,
    /// How much they may use.
    pub limits: KeyLimits,
}

/// Text that is not the hash of a key. The text itself may be a key, so it is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {0} is not a SHA-256 in 64 hexadecimal digits; make one with `printf %s KEY | sha256sum`")]
pub struct InvalidKeyHash(usize);

impl KeyHashes {
    /// Reads a comma-separated list; empty entries don't count.
    pub fn parse(list: &str) -> Result<Self, InvalidKeyHash> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let hashes = entries.zip(1..).map(|(entry, n)| decode_hex(entry).ok_or(InvalidKeyHash(n)));
        hashes.collect::<Result<_, _>>().map(Self)
    }

    /// Whether this key is one of the accepted ones, in a time that does not depend on which.
    fn accept(&self, key: &Credential) -> bool {
        let compare = |found: Choice, known: &[u8; 32]| found | known.ct_eq(&key.0);
        self.0.iter().fold(Choice::from(0), compare).into()
    }
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

impl Credential {
    /// The key in a request's headers.
    pub fn find(headers: &HeaderMap) -> Result<Self, ApiError> {
        key_of(headers).map(|key| Self(key::hash(key))).ok_or_else(|| {
            let message =
                "No API key. Send it as 'Authorization: Bearer YOUR_API_KEY' or 'X-API-Key: YOUR_API_KEY'.";
            ApiError::new(ErrorCode::MissingAuthHeader, message)
        })
    }

    /// Where the key's record is, if it has one.
    pub fn subject(&self) -> String {
        subject::key(&self.0)
    }

    fn id(&self) -> KeyId {
        KeyId::of_hash(&self.0)
    }
}

impl Caller {
    /// The holder of a key that the configuration lists.
    pub fn configured(key: &Credential, keys: &KeyHashes, default_limits: KeyLimits) -> Option<Self> {
        keys.accept(key).then(|| Self { key: key.id(), models: None, limits: default_limits })
    }

    /// The holder of a key with this record; `None` is a key that nobody knows.
    pub fn recorded(
        record: Option<KeyRecord>,
        default_limits: KeyLimits,
        now_ms: u64,
    ) -> Result<Self, ApiError> {
        let refuse = |message| Err(ApiError::new(ErrorCode::InvalidApiKey, message));
        let Some(record) = record else {
            return refuse("This API key is not valid. Check it for typing errors.");
        };
        match record.state(now_ms) {
            KeyState::Revoked => refuse("This API key was revoked. Ask its issuer for another."),
            KeyState::Expired => refuse("This API key has expired. Ask its issuer for another."),
            KeyState::Active => {
                let limits = if record.limits.is_unlimited() { default_limits } else { record.limits };
                Ok(Self { key: record.id, models: record.models, limits })
            }
        }
    }

    /// Whether they may use a model under the name `requested`.
    pub fn may_use(&self, requested: &str, names: &ModelNames) -> bool {
        let model = names.resolve(requested);
        let allowed = |models: &Vec<String>| models.iter().any(|name| name == requested || name == model);
        self.models.as_ref().is_none_or(allowed)
    }

    /// Refuses a model that they may not use.
    pub fn check_model(&self, requested: &str, names: &ModelNames) -> Result<(), ApiError> {
        if self.may_use(requested, names) {
            return Ok(());
        }
        let models = self.models.as_deref().unwrap_or_default().join(", ");
        let message = format!("This API key may not use the model '{requested}'. Its models: {models}.");
        Err(ApiError::field(ErrorCode::ModelNotAllowed, "model", message))
    }
}

/// Reads a key's record.
pub fn read_record(payload: &[u8]) -> Result<KeyRecord, UnreadableRecord> {
    let record: KeyRecord =
        serde_json::from_slice(payload).map_err(|e| UnreadableRecord(Malformed::from(e).to_string()))?;
    if record.v > PROTOCOL_VERSION {
        return Err(UnreadableRecord(format!("it has version {}", record.v)));
    }
    Ok(record)
}

/// A key's record that this function can't read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key's record can't be read: {0}")]
pub struct UnreadableRecord(String);

fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    // The second is Azure's.
    let plain = || ["x-api-key", "api-key"].iter().find_map(|name| headers.get(*name));
    bearer
        .or_else(|| plain().map(http::HeaderValue::as_bytes))
        .map(<[u8]>::trim_ascii)
        .filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SHA-256 of `abc`, from FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn check(header: &'static str, value: &str) -> Result<(), ErrorCode> {
        let keys = KeyHashes::parse(&format!("{},{}", "00".repeat(32), ABC.to_uppercase())).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header, value.parse().unwrap());
        let key = Credential::find(&headers).map_err(|e| e.code)?;
        let caller = Caller::configured(&key, &keys, KeyLimits::default());
        caller.map(drop).ok_or(ErrorCode::InvalidApiKey)
    }

    fn record() -> KeyRecord {
        KeyRecord {
            v: PROTOCOL_VERSION,
            id: KeyId::of_key(b"abc"),
            name: "n".into(),
            created: 1,
            last_four: "wxyz".into(),
            expires: Some(1000),
            revoked: None,
            models: Some(vec!["a".into(), "nick".into()]),
            limits: KeyLimits::default(),
        }
    }

    #[test]
    fn a_record_decides_who_asks_and_why_not() {
        let default_limits = KeyLimits { jobs_at_once: Some(1), ..KeyLimits::default() };
        let caller = |record, now| Caller::recorded(record, default_limits, now);
        assert_eq!(caller(Some(record()), 999).unwrap().limits, default_limits);
        let own = KeyLimits { requests_per_day: Some(5), ..KeyLimits::default() };
        let limited = KeyRecord { limits: own, ..record() };
        assert_eq!(caller(Some(limited), 999).unwrap().limits, own);
        for (record, now, word) in [
            (None, 0, "typing"),
            (Some(record()), 1000, "expired"),
            (Some(KeyRecord { revoked: Some(1), ..record() }), 0, "revoked"),
        ] {
            let error = caller(record, now).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidApiKey);
            assert!(error.message.contains(word), "{}", error.message);
        }
    }

    #[test]
    fn a_model_may_be_allowed_by_its_name_or_by_an_alias() {
        let names = ModelNames::parse("a,b,c", "also-a=a,nick=b").unwrap();
        let caller = Caller::recorded(Some(record()), KeyLimits::default(), 0).unwrap();
        let allowed = ["a", "also-a", "nick"].map(|name| caller.may_use(name, &names));
        let others = ["b", "c", "unknown"].map(|name| caller.check_model(name, &names));
        assert_eq!(allowed, [true; 3]);
        for refused in others {
            let error = refused.unwrap_err();
            assert_eq!((error.code.status(), error.param.as_deref()), (403, Some("model")));
            assert!(error.message.contains("a, nick"), "{}", error.message);
        }
        let all = Caller { models: None, ..caller };
        assert!(all.may_use("unknown", &names));
    }

    #[test]
    fn a_record_of_a_newer_writer_is_not_guessed_at() {
        let read = |record: &KeyRecord| read_record(&serde_json::to_vec(record).unwrap());
        assert_eq!(read(&record()), Ok(record()));
        assert!(read(&KeyRecord { v: PROTOCOL_VERSION + 1, ..record() }).is_err());
        assert!(read_record(b"{}").is_err());
    }

    #[test]
    fn each_header_carries_keys_and_a_bearer_goes_before_the_others() {
        assert_eq!(check("authorization", "Bearer abc"), Ok(()));
        assert_eq!(check("authorization", "bearer  abc"), Ok(()));
        assert_eq!(check("x-api-key", "abc"), Ok(()));
        assert_eq!(check("api-key", "abc"), Ok(()));
        let key = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(name, value)| {
                (http::HeaderName::from_static(name), value.parse::<http::HeaderValue>().unwrap())
            });
            Credential::find(&headers.collect()).unwrap()
        };
        let [first, second] = [key(&[("api-key", "1")]), key(&[("api-key", "2")])];
        assert_eq!(key(&[("api-key", "2"), ("authorization", "Bearer 1")]), first);
        assert_eq!(key(&[("api-key", "2"), ("x-api-key", "1")]), first);
        assert_eq!(key(&[("api-key", "2"), ("authorization", "Basic 1")]), second);
    }

    #[test]
    fn a_wrong_key_and_no_key_differ() {
        for value in ["Bearer abd", "Bearer abc def", "Bearer ab"] {
            assert_eq!(check("authorization", value), Err(ErrorCode::InvalidApiKey), "{value}");
        }
        for value in ["Bearer", "Bearer ", "Basic abc", "abc", ""] {
            assert_eq!(check("authorization", value), Err(ErrorCode::MissingAuthHeader), "{value}");
        }
        assert_eq!(check("x-other", "abc"), Err(ErrorCode::MissingAuthHeader));
    }

    #[test]
    fn without_hashes_no_key_is_valid() {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", "abc".parse().unwrap());
        let key = Credential::find(&headers).unwrap();
        assert_eq!(key.subject(), format!("$KV.keys.{ABC}"));
        assert_eq!(Caller::configured(&key, &KeyHashes::default(), KeyLimits::default()), None);
    }

    #[test]
    fn a_broken_hash_is_counted_not_shown() {
        let error = KeyHashes::parse(&format!("{ABC}, ,secret")).unwrap_err();
        assert_eq!(error, InvalidKeyHash(2));
        assert!(!error.to_string().contains("secret"));
        assert!(KeyHashes::parse(&ABC[1..]).is_err());
        assert!(KeyHashes::parse(&format!("{ABC}00")).is_err());
    }

    proptest! {
        #[test]
        fn only_the_key_itself_is_accepted(key in "[!-~]{1,40}") {
            prop_assert_eq!(check("x-api-key", &key).is_ok(), key == "abc");
        }
    }
}
