//! Names that become parts of subjects: those of users and of exports.

use emberline_protocol::subject::model_token;

/// Reads a name that stands for itself in a subject.
pub(crate) fn parse_name(name: &str) -> Result<String, &'static str> {
    let is_fitting = !name.is_empty() && model_token(name) == name;
    is_fitting.then(|| name.to_owned()).ok_or("give letters, digits, `-` and `_`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_token_of_a_subject() {
        assert!(parse_name("gpu-1_b").is_ok());
        for wrong in ["", "a.b", "a b", "*", ">"] {
            assert!(parse_name(wrong).is_err(), "{wrong}");
        }
    }
}
