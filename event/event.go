// Package event names what an audit event may be about: the values of apitoken.Event's Type. They are stored and sent as they
// stand here, and are the same in every version. A program that reads events passes over types that it does not know: later
// versions may add some, as package ledger does.
//
// Each type says which members of Event.Extra it has. Any event may also have
//
//	cut         the event was too large, and what it says here and as Scopes was left out
//	unreadable  the event's record can't be read, and why; all but its ID is missing
package event

// Type is what happened.
type Type string

const (
	// Issued is a token that a login, a client or a redeemed ticket was given. Extra:
	//
	//	actor  who acts by the token for Subject, a subject or client of this service
	Issued Type = "token.issued"

	// Prepared is a ticket that stands for tokens, such as an authorization code. It has no Extra.
	Prepared Type = "ticket.prepared"

	// Refreshed is a refresh token that was exchanged for the next ones of its session. It has no Extra.
	Refreshed Type = "token.refreshed"

	// Exchanged is a token that was made from another one (RFC 8693). Extra:
	//
	//	actor  who acts by the token for Subject, a subject or client of this service
	//	chain  the IDs of what the token descends from, parted by spaces
	Exchanged Type = "token.exchanged"

	// Refused sums up refused uses of an authentic credential; Count is how many. Extra:
	//
	//	why        the limits that said no, in words, at most four: for people, not for programs
	//	claimed    the registered client that the caller named and did not prove to be
	//	addresses  where the refusals came from, at most eight
	Refused Type = "token.refused"

	// Revoked is a revocation, and Target says of what. Extra:
	//
	//	found  "no record": perhaps a session without a refresh token; "nothing": no ID of this service
	Revoked Type = "token.revoked"

	// Reused is a spent refresh token or ticket that was presented again: what came from it is revoked. It has no Extra.
	Reused Type = "token.reused"

	// Leaked is a credential that Service.RevokeLeaked found and ended. Extra:
	//
	//	leaked  its kind, unless it is a token: a client secret, a registration token, a ticket
	Leaked Type = "token.leaked"

	// ClientRefused sums up failed authentications of clients; Count is how many. Extra:
	//
	//	claimed    the registered client that was not proved to be there
	//	addresses  where the refusals came from, at most eight
	ClientRefused Type = "client.refused"

	// ClientChanged is a client that was made, changed or deleted, as Reason says. It has no Extra.
	ClientChanged Type = "client.changed"

	// APIKeyChanged is an API key that was made, rotated, imported or edited, as Reason says. It has no Extra.
	APIKeyChanged Type = "apikey.changed"

	// KeyChanged is a change of the signing keys or of the root secret, as Reason says. Extra has either
	//
	//	kid, alg  the key and its algorithm
	//	root      the ID of the root secret that was made
	KeyChanged Type = "signingkey.changed"

	// RoleChanged is a role that was set or deleted; Reason is its name, and Scopes what it may have now. It has no Extra.
	RoleChanged Type = "role.changed"

	// RecordChanged is a stored record that an operator repaired or removed. Extra:
	//
	//	kind, record  the store.Kind of the record, and its ID
	RecordChanged Type = "record.changed"

	// Alert is what somebody should look at, as Reason says. Extra of the service's own:
	//
	//	sink  the Sink.Name that missed events
	//
	// Package misuse's Alert, report's Announce and a host's Service.Alert have their own members.
	Alert Type = "alert"
)
