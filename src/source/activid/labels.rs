//! The labels of an ActivID event: a pure function of its name, its resources and its status.
//!
//! The names are those of the audit page and the Event endpoint of HID's ActivID documentation.
//! They are no closed list, so a name is taken apart: `addRoleToUser` is a verb (`add`), a thing
//! (`Role`) and the rest, which begins with a preposition. Decisions where that leaves a choice:
//!
//! - "authenticate", "logout" and "device" are looked for in the whole name, whatever stands
//!   before a dot; "authenticate" wins over "logout".
//! - The first word is the verb, known or not. A name without a thing (`CREATE`, `addToGroup`,
//!   `heartbeat`) takes the type of the first resource that has one, else `other`.
//! - A name that is missing, or has no word behind its last dot, is `unknown` in both labels.

use crate::event::{Class, EventLabels, Label, Outcome, Principal, words};

/// The words that end the thing a name is about.
const PREPOSITIONS: [&str; 12] = ["to", "from", "for", "of", "in", "on", "with", "by", "at", "into", "onto", "as"];

/// Names the documentation lists that are neither logins nor logouts.
pub(super) const DOCUMENTED: [&str; 12] = [
    "addAssetToAssetSet",
    "addCredentialToDevice",
    "addRoleFunctionSetPrivilege",
    "addRoleToUser",
    "addUserFunctionPrivilege",
    "assignDeviceToUser",
    "changeOwnExpiredPassword",
    "changeSoftPinDevice",
    "changeUserExpiredPassword",
    "changeUserPassword",
    "4TRESS.CREATE_USER",
    "CREATE",
];

/// The labels of an event. An empty name or status is one the service left out.
pub(super) fn labels<'a>(
    name: &str,
    resource_uris: impl IntoIterator<Item = &'a str>,
    status: Option<&str>,
) -> EventLabels {
    let outcome = match status.map(str::trim) {
        Some("RESPONSE_SUCCESS") => Outcome::Success,
        Some("RESPONSE_FAILURE") => Outcome::Failure,
        _ => Outcome::Unknown,
    };
    let whole = name.to_lowercase();
    let authentication = |action, class| {
        let category = Label::from_words("authentication");
        EventLabels { category, action: Label::from_words(action), outcome, class }
    };
    if whole.contains("authenticate") {
        let principal = if whole.contains("device") { Principal::Device } else { Principal::User };
        return authentication("login", Class::Login(principal));
    }
    if whole.contains("logout") {
        return authentication("logout", Class::Logout);
    }
    let words = words(name.rsplit('.').next().unwrap_or(name));
    let Some((verb, rest)) = words.split_first() else {
        return EventLabels { category: Label::unknown(), action: Label::unknown(), outcome, class: Class::Change };
    };
    let thing: Vec<&str> = rest.iter().map(String::as_str).take_while(|word| !PREPOSITIONS.contains(word)).collect();
    let category = if thing.is_empty() {
        resource_uris.into_iter().find_map(resource_type).unwrap_or_else(Label::other)
    } else {
        Label::from_words(&thing.join(" "))
    };
    EventLabels { category, action: Label::from_words(action(verb)), outcome, class: Class::Change }
}

/// The class of a verb.
fn action(verb: &str) -> &'static str {
    match verb {
        "create" | "add" | "import" | "register" | "assign" => "create",
        "update" | "change" | "modify" | "set" | "reset" | "enable" | "unlock" => "update",
        "delete" | "remove" | "revoke" | "unassign" => "delete",
        "disable" | "lock" | "suspend" => "disable",
        _ => "other",
    }
}

/// The type in an address of a SCIM resource, in the singular: `https://host/Users/123` → `user`.
/// The last segment is the id, unless it is the only one. An id that cannot be a type (no letter
/// in it) is not taken for one.
fn resource_type(uri: &str) -> Option<Label> {
    let path = uri.split_once("://").map_or(uri, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.trim().is_empty()).collect();
    let kind = match segments.as_slice() {
        [.., kind, last] => [kind, last].into_iter().find(|segment| segment.contains(char::is_alphabetic))?,
        [only] => only,
        [] => return None,
    };
    let mut words = words(kind);
    let last = words.last_mut()?;
    *last = singular(last);
    Some(Label::from_words(&words.join(" ")))
}

/// The singular of an English plural, as far as resource types need it.
fn singular(word: &str) -> String {
    if word.chars().count() <= 3 || word.ends_with("ss") || word.ends_with("us") || word.ends_with("is") {
        return word.to_owned();
    }
    if let Some(stem) = word.strip_suffix("ies") {
        return format!("{stem}y");
    }
    if ["sses", "xes", "ches", "shes", "tuses"].iter().any(|plural| word.ends_with(plural)) {
        return word.strip_suffix("es").unwrap_or(word).to_owned();
    }
    word.strip_suffix('s').unwrap_or(word).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, uris: &[&str]) -> String {
        let labels = labels(name, uris.iter().copied(), None);
        format!("{} {} {:?}", labels.category, labels.action, labels.class)
    }

    #[test]
    fn names_become_category_action_and_class() {
        let user = "Login(User)";
        let device = "Login(Device)";
        for (name, category, action, class) in [
            // every name of the documentation
            ("primaryAuthenticateDevice", "authentication", "login", device),
            ("indirectPrimaryAuthenticateUP", "authentication", "login", user),
            ("addAssetToAssetSet", "asset", "create", "Change"),
            ("addCredentialToDevice", "credential", "create", "Change"),
            ("addRoleToUser", "role", "create", "Change"),
            ("addRoleFunctionSetPrivilege", "role_function_set_privilege", "create", "Change"),
            ("addUserFunctionPrivilege", "user_function_privilege", "create", "Change"),
            ("assignDeviceToUser", "device", "create", "Change"),
            ("changeOwnExpiredPassword", "own_expired_password", "update", "Change"),
            ("changeUserExpiredPassword", "user_expired_password", "update", "Change"),
            ("changeUserPassword", "user_password", "update", "Change"),
            ("changeSoftPinDevice", "soft_pin_device", "update", "Change"),
            ("CREATE", "user", "create", "Change"),
            ("4TRESS.CREATE_USER", "user", "create", "Change"),
            // logins and logouts, in any case and anywhere in the name
            ("primaryAuthenticateUP", "authentication", "login", user),
            ("4TRESS.PRIMARY_AUTHENTICATE_DEVICE", "authentication", "login", device),
            ("AUTHENTICATE", "authentication", "login", user),
            ("authenticatedevice", "authentication", "login", device),
            ("logout", "authentication", "logout", "Logout"),
            ("indirectLogoutUser", "authentication", "logout", "Logout"),
            ("4TRESS.LOGOUT_DEVICE", "authentication", "logout", "Logout"),
            ("logOut", "authentication", "logout", "Logout"),
            ("logoutAuthenticatedUser", "authentication", "login", user),
            // every verb
            ("createUser", "user", "create", "Change"),
            ("importDevice", "device", "create", "Change"),
            ("registerDevice", "device", "create", "Change"),
            ("updateUserAttribute", "user_attribute", "update", "Change"),
            ("modifyGroup", "group", "update", "Change"),
            ("setPin", "pin", "update", "Change"),
            ("resetPassword", "password", "update", "Change"),
            ("enableUser", "user", "update", "Change"),
            ("unlockUser", "user", "update", "Change"),
            ("deleteUser", "user", "delete", "Change"),
            ("removeRoleFromUser", "role", "delete", "Change"),
            ("revokeCredential", "credential", "delete", "Change"),
            ("unassignDeviceFromUser", "device", "delete", "Change"),
            ("disableUser", "user", "disable", "Change"),
            ("lockAuthenticator", "authenticator", "disable", "Change"),
            ("suspendDevice", "device", "disable", "Change"),
            // unknown verbs, and verbs that only begin like known ones
            ("getAuditLog", "audit_log", "other", "Change"),
            ("terminateSession", "session", "other", "Change"),
            ("settleAccount", "account", "other", "Change"),
            ("createdUser", "user", "other", "Change"),
            ("indirectChangeUserPassword", "change_user_password", "other", "Change"),
            // every preposition ends the thing, but only as a word
            ("moveUserIntoGroup", "user", "other", "Change"),
            ("moveUserOntoGroup", "user", "other", "Change"),
            ("createTicketForUser", "ticket", "create", "Change"),
            ("changeOwnerOfDevice", "owner", "update", "Change"),
            ("setFlagInProfile", "flag", "update", "Change"),
            ("setFlagOnProfile", "flag", "update", "Change"),
            ("createUserWithRole", "user", "create", "Change"),
            ("createUserByTemplate", "user", "create", "Change"),
            ("setTimeAtServer", "time", "update", "Change"),
            ("registerUserAsAdmin", "user", "create", "Change"),
            ("ADD_ROLE_TO_USER", "role", "create", "Change"),
            ("addTokenInformation", "token_information", "create", "Change"),
            // no thing: the resource type, `user` in this table
            ("DELETE", "user", "delete", "Change"),
            ("addToGroup", "user", "create", "Change"),
            ("heartbeat", "user", "other", "Change"),
            // what stands before the last dot is dropped
            ("com.hid.4TRESS.DELETE_ROLE", "role", "delete", "Change"),
            ("4TRESS.CREATE", "user", "create", "Change"),
            // no name
            ("", "unknown", "unknown", "Change"),
            ("  ", "unknown", "unknown", "Change"),
            ("--", "unknown", "unknown", "Change"),
            ("4TRESS.", "unknown", "unknown", "Change"),
        ] {
            let uris = ["https://scim.example.com/Users/123"];
            assert_eq!(text(name, &uris), format!("{category} {action} {class}"), "{name}");
        }
    }

    #[test]
    fn a_bare_verb_is_about_the_type_of_its_resource_in_the_singular() {
        for (uris, category) in [
            (&["https://scim.example.com/Users/44f6142df96bd6ab61e7521d9"][..], "user"),
            (&["https://host/scim/ACME/v2/AuthenticationPolicies/AT_EMPPWD"], "authentication_policy"),
            (&["https://host/Device/1/"], "device"),
            (&["https://host/EmailAddresses/1?x=/a/b"], "email_address"),
            (&["https://host/Access/1"], "access"),
            (&["Groups/7"], "group"),
            (&["https://host/Users"], "user"),
            (&["", "https://host", "https://host/Roles/1"], "role"),
            (&["https://host/%%/1"], "other"),
            (&["https://host/Users/123/Devices"], "device"),
            (&["https://host/4/5"], "other"),
            (&["https://host/"], "other"),
            (&[], "other"),
        ] {
            let labels = labels("CREATE", uris.iter().copied(), None);
            assert_eq!(labels.category.as_str(), category, "{uris:?}");
        }
    }

    #[test]
    fn the_status_decides_the_outcome() {
        let outcome = |status| labels("CREATE", [], status).outcome;
        assert_eq!(outcome(Some("RESPONSE_SUCCESS")), Outcome::Success);
        assert_eq!(outcome(Some("RESPONSE_FAILURE")), Outcome::Failure);
        for other in [None, Some(""), Some("RESPONSE_PENDING"), Some("SUCCESS")] {
            assert_eq!(outcome(other), Outcome::Unknown, "{other:?}");
        }
    }

    #[test]
    fn a_long_or_foreign_name_is_still_a_label() {
        let labels = labels(&format!("create{}", "Größe".repeat(50)), [], None);
        assert!(labels.category.as_str().chars().count() <= crate::event::LABEL_CHARS_MAX);
        assert_eq!(labels.action.as_str(), "create");
    }
}
