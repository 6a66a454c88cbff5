package admin

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/operate"
	"github.com/apitoken-go/apitoken/store"
)

// operations is the whole API. The description, the handler and the tests read this table; Client has a method for each row.
var operations []operation

func init() {
	operations = []operation{
		read("GET", "/v1/status", "How the service stands: clock, view, backlog, limits.", reader.status),
		read("GET", "/v1/sessions", "Live sessions, the newest first.", reader.sessions),
		read("GET", "/v1/keys", "API keys, the newest first.", reader.keys),
		read("GET", "/v1/keys/{id}", "One API key.", reader.key),
		change("POST", "/v1/keys", "Make an API key. The answer holds its secret, this once.", changer.createKey),
		change("POST", "/v1/keys/{id}/rotate", "Make an API key's successor. The answer holds its secret, this once.", changer.rotateKey),
		change("PATCH", "/v1/keys/{id}", "Change an API key: its name, scopes, end and metadata, and whether it is refused for now.", changer.editKey),
		change("POST", "/v1/keys/{id}/revoke", "End an API key.", changer.revokeKey),
		read("GET", "/v1/clients", "Registered clients.", reader.clients),
		read("GET", "/v1/clients/{id}", "One client.", reader.client),
		change("POST", "/v1/clients", "Register a client. The answer holds its secret, if it has one, this once.", changer.createClient),
		change("POST", "/v1/clients/{id}/rotate", "Make a client another secret. The answer holds it, this once.", changer.rotateClient),
		change("POST", "/v1/clients/{id}/able", "Disable a client, which ends all it holds, or let it go on.", changer.ableClient),
		read("GET", "/v1/roles", "Roles and what they expand to.", reader.roles),
		change("PUT", "/v1/roles/{name}", "Define what a role expands to.", changer.setRole),
		change("POST", "/v1/revoke", "End what a target names: a session, a subject, a client, a signing key's tokens, everything.", changer.revoke),
		change("POST", "/v1/leaked", "End the credentials of this service that a text holds.", changer.leaked),
		read("POST", "/v1/explain", "Say which check lets a token in or refuses it.", reader.explain),
		read("GET", "/v1/events", "Audit events, the newest first unless oldest_first is set.", reader.events),
		read("GET", "/v1/events/{id}", "One audit event.", reader.event),
		read("GET", "/v1/signing-keys", "The public sides of the signing keys.", reader.signingKeys),
		change("POST", "/v1/signing-keys/rotate", "Bring a new signing key forward.", changer.rotateSigning),
		change("POST", "/v1/signing-keys/rotate-secrets", "Make a new root secret.", changer.rotateSecrets),
		change("POST", "/v1/signing-keys/rewrap", "Seal every root secret again with the current key-encryption key.", changer.rewrap),
		change("POST", "/v1/signing-keys/{id}/compromise", "Withdraw a signing key at once, with all that it signed.", changer.compromise),
		read("GET", "/v1/expiring", "API keys and client secrets that end before a time. Reads all there are.", reader.expiring),
		read("GET", "/v1/unreadable", "Stored records that cannot be read.", reader.unreadable),
		change("POST", "/v1/unreadable/remove", "End a record that cannot be read. Nothing that was refused becomes good.", changer.remove),
		{method: "GET", path: "/v1/backup", about: "A consistent copy of the store, as bytes.", change: true, in: None{}, serve: (*api).backup},
		{method: "GET", path: "/v1/openapi.json", about: "This description.", in: None{}, serve: (*api).description},
	}
}

// formed is a page in the form of the API.
func formed[T, U any](p operate.Page[T], err error, form func(T) U) (Page[U], error) {
	out := Page[U]{Items: make([]U, len(p.Items)), Next: p.Next}
	for i, x := range p.Items {
		out.Items[i] = form(x)
	}
	return out, err
}

func pageLimit(n int) int {
	if n <= 0 {
		n = 100
	}
	return min(n, maxPage)
}

func seconds(d time.Duration) float64 { return d.Seconds() }

func lags(m map[string]time.Duration) map[string]float64 {
	out := map[string]float64{}
	for name, d := range m {
		out[name] = seconds(d)
	}
	return out
}

func (a reader) status(context.Context, None) (Status, error) {
	x := a.Standing()
	set, view, back := x.Settings, x.Freshness, x.Backlog
	return Status{
		Issuer: set.Issuer, Audiences: set.Audiences, FirstParty: set.FirstParty, Now: x.Now.UTC(),
		ViewAge: seconds(view.Age), Stale: view.Stale, MaxStaleness: seconds(set.MaxStaleness),
		Refusals: back.Refusals, Uses: back.Uses, Revocations: back.Revocations, Unreadable: back.Unreadable,
		Sinks: lags(back.Sinks), SinkLimits: lags(set.SinkLags),
		KeyRotation: seconds(set.KeyRotation), KeepEvents: seconds(set.KeepEvents),
		MaxAccess: seconds(set.Lifetimes.MaxAccess), MaxGrant: seconds(set.Lifetimes.Grant),
		Clients: x.Clients, ClientsDisabled: x.Disabled,
		KeyLimit: set.Limits.APIKeysPerSubject, GrantLimit: set.Limits.GrantsPerSubject, Backup: a.o.Backup != nil,
	}, nil
}

func (a reader) sessions(ctx context.Context, q SessionQuery) (Page[Session], error) {
	p, err := a.Sessions(ctx, q.Subject, q.Client, q.After, pageLimit(q.Limit))
	return formed(p, err, func(g apitoken.Grant) Session {
		return Session{ID: g.ID, Subject: g.Subject, Client: g.Client, Scopes: some(g.Scopes), Roles: g.Roles, Created: g.Created.UTC(), Expires: g.Expires.UTC(),
			LastUsed: utc(g.LastUsed), LastAddress: g.LastAddress, Address: g.Address, UserAgent: g.UserAgent, Uses: g.Uses, UsedScopes: g.UsedScopes}
	})
}

// some makes JSON say [] and not null.
func some(s apitoken.Scopes) apitoken.Scopes {
	if s == nil {
		return apitoken.Scopes{}
	}
	return s
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}

// keyForm is the form of API keys, whose state is that of now.
func keyForm(l operate.Look) func(apitoken.APIKey) Key {
	now := l.Now()
	return func(k apitoken.APIKey) Key { return keyAt(k, now) }
}

func keyAt(k apitoken.APIKey, now time.Time) Key {
	return Key{ID: k.ID, Subject: k.Subject, Name: k.Name, Start: k.Start, Last: k.Last, Scopes: some(k.Scopes), Created: k.Created.UTC(), Expires: utc(k.Expires),
		LastUsed: utc(k.LastUsed), LastAddress: k.LastAddress, UsedScopes: k.UsedScopes, Uses: k.Uses, MaxUses: k.MaxUses, UsesPer: k.UsesPer, Replaced: utc(k.Replaced), Revoked: k.Revoked, Disabled: k.Disabled, Predecessor: k.Predecessor, Successor: k.Successor,
		State: k.State(now), Metadata: k.Metadata}
}

func (a reader) keys(ctx context.Context, q KeyQuery) (Page[Key], error) {
	p, err := a.Keys(ctx, q.Subject, q.After, pageLimit(q.Limit))
	return formed(p, err, keyForm(a.Look))
}

func (a reader) key(ctx context.Context, in ID) (Key, error) {
	k, err := a.Key(ctx, in.ID)
	return keyForm(a.Look)(k), err
}

func (a changer) madeKey(m operate.Made[apitoken.APIKey], err error) (MadeKey, error) {
	return MadeKey{keyForm(a.Look)(m.It), m.Secret.Reveal()}, err
}

func (a changer) createKey(ctx context.Context, in NewKey) (MadeKey, error) {
	return a.madeKey(a.CreateKey(ctx, apitoken.APIKeyRequest{Subject: in.Subject, Name: in.Name, Scopes: in.Scopes, Expires: in.Expires, MaxUses: in.MaxUses, UsesPer: in.UsesPer, Metadata: in.Metadata}))
}

func (a changer) rotateKey(ctx context.Context, in Rotation) (MadeKey, error) {
	overlap, err := in.overlap()
	if err != nil {
		return MadeKey{}, err
	}
	return a.madeKey(a.RotateKey(ctx, in.ID, overlap))
}

func (in Rotation) overlap() (time.Duration, error) {
	if in.Overlap < 0 || in.Overlap > 366*24*3600 {
		return 0, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "overlap_seconds is not between 0 and a year"}
	}
	return time.Duration(in.Overlap) * time.Second, nil
}

func (a changer) editKey(ctx context.Context, in KeyEdit) (Key, error) {
	if in.Never && !in.Expires.IsZero() {
		return Key{}, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "expires and never contradict each other"}
	}
	k, err := a.EditKey(ctx, in.ID, func(k *apitoken.APIKey) error {
		if in.Name != nil {
			k.Name = *in.Name
		}
		if in.Scopes != nil {
			k.Scopes = *in.Scopes
		}
		if in.Never || !in.Expires.IsZero() {
			k.Expires = in.Expires
		}
		if in.Metadata != nil {
			k.Metadata = maps.Clone(k.Metadata)
			if k.Metadata == nil {
				k.Metadata = map[string]string{}
			}
			for name, v := range in.Metadata {
				if k.Metadata[name] = v; v == "" {
					delete(k.Metadata, name)
				}
			}
		}
		if in.Disabled != nil {
			k.Disabled = *in.Disabled
		}
		return nil
	})
	return keyForm(a.Look)(k), err
}

func (a changer) revokeKey(ctx context.Context, in Ending) (None, error) {
	return None{}, a.RevokeKey(ctx, in.ID, in.Reason)
}

func clientForm(c apitoken.Client) ClientInfo {
	x := ClientInfo{ID: c.ID, Name: c.Name, Public: c.Public, GrantTypes: c.GrantTypes, Scopes: some(c.Scopes), Audiences: c.Audiences, RedirectURIs: c.RedirectURIs,
		AuthMethod: c.AuthMethod, TLSName: c.TLSName, Disabled: c.Disabled, Created: c.Created.UTC(), Expires: utc(c.Expires)}
	if json.Valid(c.Keys) {
		x.JWKS = c.Keys
	}
	return x
}

func (a reader) clients(ctx context.Context, q PageQuery) (Page[ClientInfo], error) {
	p, err := a.Clients(ctx, q.After, pageLimit(q.Limit))
	return formed(p, err, clientForm)
}

func (a reader) client(ctx context.Context, in ID) (ClientInfo, error) {
	c, err := a.Client(ctx, in.ID)
	if err != nil {
		return ClientInfo{}, err
	}
	secrets, err := a.Secrets(ctx, in.ID)
	x := clientForm(c)
	for _, s := range secrets {
		x.Secrets = append(x.Secrets, ClientSecret{s.Created.UTC(), utc(s.Expires)})
	}
	return x, err
}

func madeClient(m operate.Made[apitoken.Client], err error) (MadeClient, error) {
	return MadeClient{clientForm(m.It), m.Secret.Reveal()}, err
}

func (a changer) createClient(ctx context.Context, in ClientSpec) (MadeClient, error) {
	return madeClient(a.CreateClient(ctx, "", apitoken.Client{ID: in.ID, Name: in.Name, Public: in.Public, GrantTypes: in.GrantTypes, Scopes: in.Scopes,
		Audiences: in.Audiences, RedirectURIs: in.RedirectURIs, AuthMethod: in.AuthMethod, Keys: in.JWKS, TLSName: in.TLSName}))
}

func (a changer) rotateClient(ctx context.Context, in Rotation) (MadeClient, error) {
	overlap, err := in.overlap()
	if err != nil {
		return MadeClient{}, err
	}
	return madeClient(a.RotateClient(ctx, "", in.ID, overlap))
}

func (a changer) ableClient(ctx context.Context, in Able) (ClientInfo, error) {
	c, err := a.UpdateClient(ctx, in.ID, func(c *apitoken.Client) error { c.Disabled = in.Disabled; return nil })
	return clientForm(c), err
}

func (a reader) roles(context.Context, None) (Page[Role], error) {
	return formed(operate.Page[operate.Role]{Items: a.Roles()}, nil, func(r operate.Role) Role { return Role{r.Name, some(r.Scopes)} })
}

func (a changer) setRole(ctx context.Context, in Role) (Role, error) {
	return in, a.SetRole(ctx, operate.Role(in))
}

func (a changer) revoke(ctx context.Context, in Revocation) (None, error) {
	return None{}, a.Revoke(ctx, in.Target, in.Reason)
}

func (a changer) leaked(ctx context.Context, in LeakedText) (Ended, error) {
	n, err := a.RevokeLeaked(ctx, []byte(in.Text), in.Reason)
	return Ended{n}, err
}

func (a reader) explain(ctx context.Context, in Question) (Answer, error) {
	x, err := a.Explain(ctx, in.Token, in.Needs, in.Any)
	if err != nil {
		return Answer{}, err
	}
	out := Answer{Good: x.Err == nil, Steps: []Step{}}
	for _, s := range x.Steps {
		out.Steps = append(out.Steps, Step(s))
	}
	if x.Err != nil {
		out.Class = operate.ClassOf(x.Err).Name
		if e := (*apitoken.Error)(nil); errors.As(x.Err, &e) {
			out.Detail = e.Detail
		}
	}
	if t := x.Token; !t.IsZero() {
		out.Token = &TokenInfo{Kind: opaque.TokenKind(t.IsAPIKey()), ID: t.ID(), Issuer: t.Issuer(), Subject: t.Subject(), Client: t.Client(), Session: t.Grant(), Audiences: t.Audiences(),
			Scopes: some(t.Scopes()), Roles: t.Roles(), Actors: t.Actors(), Issued: t.IssuedAt().UTC(), Expires: utc(t.ExpiresAt()), Binding: t.Binding()}
	}
	return out, nil
}

func (a reader) events(ctx context.Context, in EventQuery) (Events, error) {
	list, next, err := a.EventPage(ctx, apitoken.EventQuery{Subject: in.Subject, Client: in.Client, TokenID: in.TokenID, Grant: in.Grant, Issuer: in.Issuer,
		Type: event.Type(in.Type), From: in.From, To: in.To, OldestFirst: in.OldestFirst}, in.Cursor, in.Limit)
	if list == nil {
		list = []apitoken.Event{}
	}
	return Events{list, next}, err
}

func (a reader) event(ctx context.Context, in ID) (apitoken.Event, error) {
	return a.Event(ctx, in.ID)
}

func (a reader) signingKeys(ctx context.Context, _ None) (Page[SigningKeyInfo], error) {
	list, err := a.SigningKeys(ctx)
	return formed(operate.Page[apitoken.SigningKey]{Items: list}, err, func(k apitoken.SigningKey) SigningKeyInfo {
		return SigningKeyInfo{ID: k.ID, Algorithm: k.Algorithm, Audience: k.Audience, State: k.State, Since: k.Since.UTC(), Until: utc(k.Until), Outside: k.Outside, JWK: k.JWK}
	})
}

func (a changer) rotateSigning(ctx context.Context, _ None) (None, error) {
	return None{}, a.RotateSigningKeys(ctx)
}

func (a changer) rotateSecrets(ctx context.Context, _ None) (None, error) {
	return None{}, a.RotateSecrets(ctx)
}

func (a changer) rewrap(ctx context.Context, _ None) (None, error) {
	return None{}, a.Rewrap(ctx)
}

func (a changer) compromise(ctx context.Context, in Ending) (None, error) {
	return None{}, a.Compromise(ctx, in.ID, in.Reason)
}

func (a reader) expiring(ctx context.Context, in ExpiryQuery) (Page[Expiry], error) {
	if in.Before.IsZero() {
		in.Before = a.Now().Add(30 * 24 * time.Hour)
	}
	e, err := a.Expiring(ctx, in.Before, pageLimit(in.Limit))
	return formed(operate.Page[apitoken.Expiry]{Items: e.Items}, err, func(x apitoken.Expiry) Expiry {
		return Expiry{x.Kind, x.ID, x.Owner, x.Client, x.Name, x.Ends.UTC()}
	})
}

func (a reader) unreadable(ctx context.Context, in UnreadableQuery) (Page[Unreadable], error) {
	list, err := a.Unreadable(ctx, in.All, maxPage)
	return formed(operate.Page[apitoken.UnreadableRecord]{Items: list}, err, func(r apitoken.UnreadableRecord) Unreadable {
		why := "cannot be read"
		if r.Err != nil {
			why = r.Err.Error()
		}
		return Unreadable{string(r.Kind), r.ID, why}
	})
}

func (a changer) remove(ctx context.Context, in Unreadable) (None, error) {
	return None{}, a.Remove(ctx, store.Kind(in.Kind), in.ID)
}

// backup streams a copy. One that fails on the way ends the connection, so that nobody takes what came for whole.
func (a *api) backup(w http.ResponseWriter, r *http.Request) {
	if a.o.Backup == nil {
		answerError(w, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "this service makes no backups: use the engine's own means"})
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // as long as the file is large
	out := &started{ResponseWriter: w}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	if err := a.o.Backup(r.Context(), out); err != nil {
		if out.yes {
			panic(http.ErrAbortHandler)
		}
		w.Header().Del("Content-Type")
		answerError(w, err)
	}
}

// started knows whether anything was sent.
type started struct {
	http.ResponseWriter
	yes bool
}

func (s *started) Write(b []byte) (int, error) {
	s.yes = true
	return s.ResponseWriter.Write(b)
}

func (a *api) description(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(Description) // the caller is gone: nobody to tell
}
