//! Prompts that end in the middle of a message.
//!
//! As Hugging Face's `apply_chat_template` does it: a mark is put behind the last message, and what the
//! template writes is cut off where the mark begins.

use emberline_protocol::job::Message;

/// Its final space shows whether the template trims messages.
const MARK: &str = "EMBERLINE-CUTS-HERE ";

/// Marks the end of the last message; the white space that was there after its text.
pub(super) fn mark(messages: &mut [Message]) -> String {
    let Some(last) = messages.last_mut() else { return String::new() };
    let text = last.content.trim_end().len();
    let space = if text > 0 { last.content.split_off(text) } else { String::new() };
    last.content.push_str(&space);
    last.content.push_str(MARK);
    space
}

/// A text up to the mark, which came after this `space`; `None` if the template has not written it.
pub(super) fn cut(mut text: String, space: &str) -> Option<String> {
    let end = text.rfind(MARK.trim_end())?;
    let is_trimmed = !text.get(end..).is_some_and(|rest| rest.starts_with(MARK));
    text.truncate(end);
    if is_trimmed && text.ends_with(space) {
        // Without the mark, it would have been trimmed.
        text.truncate(end - space.len());
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use emberline_protocol::job::Role;

    use super::*;
    use crate::template::{ChatTemplate, Conversation, TemplateError};

    /// A template that writes messages as `content` says.
    fn render(content: &str, last: &str) -> Result<String, TemplateError> {
        let source = format!(
            "{{% for message in messages %}}<{{{{ message.role }}}}>\n{{{{ {content} }}}}</end>\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<assistant>\n{{% endif %}}"
        );
        let template = ChatTemplate::new(&source, []).unwrap();
        let messages = [Message::new(Role::User, "Hi"), Message::new(Role::Assistant, last)];
        template.render(&Conversation {
            add_generation_prompt: false,
            continue_final_message: true,
            ..Conversation::new(&messages, 0)
        })
    }

    #[test]
    fn the_prompt_ends_with_the_last_messages_text() {
        let prompt = |text: &str| format!("<user>\nHi</end>\n<assistant>\n{text}");
        for text in ["Well, ", "", "Hi", "two\nlines \n"] {
            assert_eq!(render("message.content", text).unwrap(), prompt(text));
        }
        // As it would be without the mark.
        for (text, trimmed) in [("Well, ", "Well,"), ("  Hi", "Hi"), ("x \n", "x"), ("", ""), (" \n", "")] {
            assert_eq!(render("message.content | trim", text).unwrap(), prompt(trimmed));
        }
    }

    #[test]
    fn a_message_that_is_not_written_can_not_go_on() {
        let hidden = render("message.content if message.role == 'user' else ''", "Well, ");
        assert!(matches!(hidden, Err(TemplateError::NotContinued)), "{hidden:?}");
    }
}
