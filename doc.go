// Package apitoken runs an API token service inside a Go program: it issues tokens to confirmed identities,
// validates them, revokes them, decides what they may do, and keeps an audit trail.
//
// Most programs need this much:
//
//	[New]                       a service on a store
//	[Service.Issue]             tokens for a subject or a client
//	[Service.Revoke]            end them: [ByGrant], [BySubject], [ByClient], …
//	httpauth.New(svc, nil)      a middleware: auth.Require("orders:read")
//	[FromContext]               who is calling, inside a handler
//
// A program that only validates, in another process, needs remote.NewValidator and no store.
//
// # What a program may rely on
//
// An acknowledged revocation is in force in this process when [Service.Revoke] returns, and in every other one within the
// bound that its validators declare ([Validation].MaxStaleness); a validator that cannot keep the bound refuses. Nothing
// is issued, changed or revoked without its audit event, written in the same transaction. No usable secret reaches the
// store, the events, errors or logs: [Secret] redacts itself, and Reveal is the only way to the text.
//
// # Versions
//
// Processes of two versions may share a store. A stored record that a process cannot read, because it is damaged or a newer
// version added what an older one must not ignore, is set aside: what depends on it is refused with [ErrUnavailable] (all
// that a revocation may be about: with [ErrRevoked]), and nothing else. [Backlog] and the metrics count such records,
// [Service.Unreadable] lists them, [Service.Repair] and [Service.Remove] are the operator's. What a newer version added and
// an older one may ignore is kept when the older one rewrites the record.
//
// # Errors
//
// Every error is an [*Error] whose code is one of the Err… sentinels, for errors.Is. Where a client's input decides, its Error()
// is fit for a client; calls of the host's own, such as [Clients.Declare] and [Service.SetRole], say there what is wrong. The
// detail shows in log/slog and in fmt's %v and %+v: never answer a client with those. Constructors return a [*ConfigError]
// that names the invalid field and the reason. [ErrUnavailable] never means that a token is bad, and retrying is safe.
//
// # Names
//
// Words are those of RFC 6749 and RFC 9068. Names from a registry (algorithms, grant types) are plain strings, checked by
// the constructor that takes them. A Config passed by value has required fields, and says in each field's comment what its
// zero means; a trailing *Options may be nil. Whoever opens something closes it.
package apitoken
