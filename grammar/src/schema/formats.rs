//! The formats of the standard as patterns, matched from end to end. Each takes a subset of what its document defines, so that any
//! validator agrees; what is not here is an annotation.

/// The format's pattern, if it is one that we enforce.
pub fn pattern(name: &str) -> Option<&'static str> {
    known(name).map(|(_, pattern)| pattern)
}

/// The format's own name, if it is one that we enforce.
pub fn known(name: &str) -> Option<(&'static str, &'static str)> {
    FORMATS.iter().copied().find(|(known, _)| *known == name)
}

macro_rules! days {
    () => {
        "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
    };
}

macro_rules! clock {
    () => {
        r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    };
}

macro_rules! octet {
    () => {
        "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}

macro_rules! label {
    () => {
        "[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,31}"
    };
}

macro_rules! ipv4 {
    () => {
        concat!("(?:", octet!(), r"\.){3}", octet!())
    };
}

macro_rules! character {
    () => {
        "(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
    };
}

macro_rules! authority {
    () => {
        r"(?:(?:[a-zA-Z0-9._~!$&'()*+,;=:-]|%[0-9a-fA-F]{2})*@)?(?:[a-zA-Z0-9._~!$&'()*+,;=-]|%[0-9a-fA-F]{2})*(?::[0-9]{1,5})?"
    };
}

macro_rules! tail {
    () => {
        concat!(r"(?:\?(?:", character!(), r"|[/?])*)?(?:\#(?:", character!(), "|[/?])*)?")
    };
}

const FORMATS: [(&str, &str); 14] = [
    ("date-time", concat!(days!(), "[tT]", clock!())),
    ("date", days!()),
    ("time", clock!()),
    (
        "duration",
        r"P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?|[0-9]{1,9}D)(?:T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S))?|T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S))",
    ),
    (
        "email",
        concat!(
            r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,30}(?:\.[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,30})?@(?:",
            label!(),
            r"\.){0,3}",
            label!()
        ),
    ),
    ("hostname", concat!(label!(), r"(?:\.", label!(), "){0,3}")),
    ("ipv4", ipv4!()),
    (
        "ipv6",
        concat!(
            "(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}",
            "|(?:[0-9a-fA-F]{1,4}:){1,7}:",
            "|(?:[0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}",
            "|(?:[0-9a-fA-F]{1,4}:){1,5}(?::[0-9a-fA-F]{1,4}){1,2}",
            "|(?:[0-9a-fA-F]{1,4}:){1,4}(?::[0-9a-fA-F]{1,4}){1,3}",
            "|(?:[0-9a-fA-F]{1,4}:){1,3}(?::[0-9a-fA-F]{1,4}){1,4}",
            "|(?:[0-9a-fA-F]{1,4}:){1,2}(?::[0-9a-fA-F]{1,4}){1,5}",
            "|[0-9a-fA-F]{1,4}:(?::[0-9a-fA-F]{1,4}){1,6}",
            "|:(?:(?::[0-9a-fA-F]{1,4}){1,7}|:)",
            "|::(?:[0-9a-fA-F]{1,4}:){0,5}",
            ipv4!()
        ),
    ),
    ("uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"),
    (
        "uri",
        concat!(
            "[a-zA-Z][a-zA-Z0-9+.-]*:(?://",
            authority!(),
            "(?:/",
            character!(),
            "*)*|/(?:",
            character!(),
            "+(?:/",
            character!(),
            "*)*)?|",
            character!(),
            "+(?:/",
            character!(),
            "*)*)",
            tail!()
        ),
    ),
    (
        "uri-reference",
        concat!(
            "(?:(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?(?://",
            authority!(),
            ")?(?:/",
            character!(),
            "+)*/?|(?:[a-zA-Z0-9._~!$&'()*+,;=@-]|%[0-9a-fA-F]{2})+(?:/",
            character!(),
            "+)*/?)",
            tail!()
        ),
    ),
    ("json-pointer", "(?:/(?:[^~/]|~0|~1)*)*"),
    ("relative-json-pointer", "(?:0|[1-9][0-9]{0,8})(?:#|(?:/(?:[^~/]|~0|~1)*)*)"),
    // Any JSON Schema pattern of letters and digits; more cannot be told apart from what is none.
    ("regex", r"\^?(?:[a-zA-Z0-9 _/@:;,<>=!&%#~'-]|\\[.dDwWsS]|\.)*\$?"),
];
