package admin

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
)

// operations is the whole API. The description, the handler and the tests read this table; Client has a method for each row.
var operations []operation

func init() {
	operations = []operation{
		read("GET", "/v1/status", "How the service stands: clock, view, backlog, limits.", (*api).status),
		read("GET", "/v1/sessions", "Live sessions, the newest first.", (*api).sessions),
		read("GET", "/v1/keys", "API keys, the newest first.", (*api).keys),
		read("GET", "/v1/keys/{id}", "One API key.", (*api).key),
		change("POST", "/v1/keys", "Make an API key. The answer holds its secret, this once.", (*api).createKey),
		change("POST", "/v1/keys/{id}/rotate", "Make an API key's successor. The answer holds its secret, this once.", (*api).rotateKey),
		change("POST", "/v1/keys/{id}/rename", "Give an API key another name.", (*api).renameKey),
		change("POST", "/v1/keys/{id}/revoke", "End an API key.", (*api).revokeKey),
		read("GET", "/v1/clients", "Registered clients.", (*api).clients),
		read("GET", "/v1/clients/{id}", "One client.", (*api).client),
		change("POST", "/v1/clients", "Register a client. The answer holds its secret, if it has one, this once.", (*api).createClient),
		change("POST", "/v1/clients/{id}/rotate", "Make a client another secret. The answer holds it, this once.", (*api).rotateClient),
		change("POST", "/v1/clients/{id}/able", "Disable a client, which ends all it holds, or let it go on.", (*api).ableClient),
		read("GET", "/v1/roles", "Roles and what they expand to.", (*api).roles),
		change("PUT", "/v1/roles/{name}", "Define what a role expands to.", (*api).setRole),
		change("POST", "/v1/revoke", "End what a target names: a session, a subject, a client, a signing key's tokens, everything.", (*api).revoke),
		change("POST", "/v1/leaked", "End the credentials of this service that a text holds.", (*api).leaked),
		read("POST", "/v1/explain", "Say which check lets a token in or refuses it.", (*api).explain),
		read("GET", "/v1/events", "Audit events, the newest first unless oldest_first is set.", (*api).events),
		read("GET", "/v1/events/{id}", "One audit event.", (*api).event),
		read("GET", "/v1/signing-keys", "The public sides of the signing keys.", (*api).signingKeys),
		change("POST", "/v1/signing-keys/rotate", "Bring a new signing key forward.", (*api).rotateSigning),
		change("POST", "/v1/signing-keys/rotate-secrets", "Make a new root secret.", (*api).rotateSecrets),
		change("POST", "/v1/signing-keys/rewrap", "Seal every root secret again with the current key-encryption key.", (*api).rewrap),
		change("POST", "/v1/signing-keys/{id}/compromise", "Withdraw a signing key at once, with all that it signed.", (*api).compromise),
		read("GET", "/v1/expiring", "API keys and client secrets that end before a time. Reads all there are.", (*api).expiring),
		read("GET", "/v1/unreadable", "Stored records that cannot be read.", (*api).unreadable),
		change("POST", "/v1/unreadable/remove", "End a record that cannot be read. Nothing that was refused becomes good.", (*api).remove),
		{method: "GET", path: "/v1/backup", about: "A consistent copy of the store, as bytes.", change: true, in: None{}, serve: (*api).backup},
		{method: "GET", path: "/v1/openapi.json", about: "This description.", in: None{}, serve: (*api).description},
	}
}

// up takes a page of a listing: limit items, and one more that tells whether there are others.
func up[T, U any](list iter.Seq2[T, error], limit int, id func(T) string, form func(T) U) (Page[U], error) {
	p := Page[U]{Items: []U{}}
	last := ""
	for x, err := range list {
		if err != nil {
			return p, err
		}
		if len(p.Items) == limit {
			p.Next = last
			break
		}
		p.Items, last = append(p.Items, form(x)), id(x)
	}
	return p, nil
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

func (a *api) status(context.Context, None) (Status, error) {
	set, view, back := a.svc.Settings(), a.svc.Freshness(), a.svc.Backlog()
	return Status{
		Issuer: set.Issuer, Audiences: set.Audiences, FirstParty: set.FirstParty, Now: a.svc.Now().UTC(),
		ViewAge: seconds(view.Age), Stale: view.Stale, MaxStaleness: seconds(set.MaxStaleness),
		Refusals: back.Refusals, Uses: back.Uses, Revocations: back.Revocations, Unreadable: back.Unreadable,
		Sinks: lags(back.Sinks), SinkLimits: lags(set.SinkLags),
		KeyRotation: seconds(set.KeyRotation), KeepEvents: seconds(set.KeepEvents),
		MaxAccess: seconds(set.Lifetimes.MaxAccess), MaxGrant: seconds(set.Lifetimes.Grant),
		KeyLimit: set.Limits.APIKeysPerSubject, GrantLimit: set.Limits.GrantsPerSubject, Backup: a.o.Backup != nil,
	}, nil
}

func (a *api) sessions(ctx context.Context, q SessionQuery) (Page[Session], error) {
	target := apitoken.Everything()
	switch {
	case q.Subject != "" && q.Client != "":
		target = apitoken.BySubject(q.Subject).HeldBy(q.Client)
	case q.Subject != "":
		target = apitoken.BySubject(q.Subject)
	case q.Client != "":
		target = apitoken.ByClient(q.Client)
	}
	limit := pageLimit(q.Limit)
	return up(a.svc.Grants(ctx, target, apitoken.Page{After: q.After, Limit: limit + 1}), limit, func(g apitoken.Grant) string { return g.ID }, func(g apitoken.Grant) Session {
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

func keyForm(k apitoken.APIKey) Key {
	return Key{ID: k.ID, Subject: k.Subject, Name: k.Name, Start: k.Start, Scopes: some(k.Scopes), Created: k.Created.UTC(), Expires: utc(k.Expires),
		LastUsed: utc(k.LastUsed), LastAddress: k.LastAddress, UsedScopes: k.UsedScopes, Uses: k.Uses, MaxUses: k.MaxUses, UsesPer: k.UsesPer, Replaced: utc(k.Replaced), Revoked: k.Revoked, Disabled: k.Disabled}
}

func (a *api) keys(ctx context.Context, q KeyQuery) (Page[Key], error) {
	limit := pageLimit(q.Limit)
	p := apitoken.Page{After: q.After, Limit: limit + 1}
	list := a.svc.APIKeys.List(ctx, p)
	if q.Subject != "" {
		list = a.svc.APIKeys.Of(ctx, q.Subject, p)
	}
	return up(list, limit, func(k apitoken.APIKey) string { return k.ID }, keyForm)
}

func (a *api) key(ctx context.Context, in ID) (Key, error) {
	k, err := a.svc.APIKeys.Get(ctx, in.ID)
	return keyForm(k), err
}

func (a *api) createKey(ctx context.Context, in NewKey) (MadeKey, error) {
	k, secret, err := a.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: in.Subject, Name: in.Name, Scopes: in.Scopes, Expires: in.Expires,
		MaxUses: in.MaxUses, UsesPer: in.UsesPer})
	return MadeKey{keyForm(k), secret.Reveal()}, err
}

func (a *api) rotateKey(ctx context.Context, in Rotation) (MadeKey, error) {
	overlap, err := in.overlap()
	if err != nil {
		return MadeKey{}, err
	}
	k, secret, err := a.svc.APIKeys.Rotate(ctx, in.ID, overlap)
	return MadeKey{keyForm(k), secret.Reveal()}, err
}

func (in Rotation) overlap() (time.Duration, error) {
	if in.Overlap < 0 || in.Overlap > 366*24*3600 {
		return 0, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "overlap_seconds is not between 0 and a year"}
	}
	return time.Duration(in.Overlap) * time.Second, nil
}

func (a *api) renameKey(ctx context.Context, in Naming) (Key, error) {
	k, err := a.svc.APIKeys.Rename(ctx, in.ID, in.Name)
	return keyForm(k), err
}

func (a *api) revokeKey(ctx context.Context, in Ending) (None, error) {
	if err := because(in.Reason); err != nil {
		return None{}, err
	}
	return None{}, a.svc.APIKeys.Revoke(ctx, in.ID, in.Reason)
}

// because refuses an end without a reason: the audit trail has to say why.
func because(reason string) error {
	if strings.TrimSpace(reason) == "" || len(reason) > 256 {
		return &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "reason is required, of at most 256 bytes"}
	}
	return nil
}

func clientForm(c apitoken.Client) ClientInfo {
	x := ClientInfo{ID: c.ID, Name: c.Name, Public: c.Public, GrantTypes: c.GrantTypes, Scopes: some(c.Scopes), Audiences: c.Audiences, RedirectURIs: c.RedirectURIs,
		AuthMethod: c.AuthMethod, TLSName: c.TLSName, Disabled: c.Disabled, Created: c.Created.UTC(), Expires: utc(c.Expires)}
	if json.Valid(c.Keys) {
		x.JWKS = c.Keys
	}
	return x
}

func (a *api) clients(ctx context.Context, q PageQuery) (Page[ClientInfo], error) {
	limit := pageLimit(q.Limit)
	return up(a.svc.Clients.List(ctx, apitoken.Page{After: q.After, Limit: limit + 1}), limit, func(c apitoken.Client) string { return c.ID }, clientForm)
}

func (a *api) client(ctx context.Context, in ID) (ClientInfo, error) {
	c, err := a.svc.Clients.Get(ctx, in.ID)
	return clientForm(c), err
}

func (a *api) createClient(ctx context.Context, in ClientSpec) (MadeClient, error) {
	c, secret, err := a.svc.Clients.Create(ctx, apitoken.Client{ID: in.ID, Name: in.Name, Public: in.Public, GrantTypes: in.GrantTypes, Scopes: in.Scopes,
		Audiences: in.Audiences, RedirectURIs: in.RedirectURIs, AuthMethod: in.AuthMethod, Keys: in.JWKS, TLSName: in.TLSName})
	return MadeClient{clientForm(c), secret.Reveal()}, err
}

func (a *api) rotateClient(ctx context.Context, in Rotation) (MadeClient, error) {
	overlap, err := in.overlap()
	if err != nil {
		return MadeClient{}, err
	}
	c, err := a.svc.Clients.Get(ctx, in.ID)
	if err != nil {
		return MadeClient{}, err
	}
	secret, err := a.svc.Clients.RotateSecret(ctx, in.ID, overlap)
	return MadeClient{clientForm(c), secret.Reveal()}, err
}

func (a *api) ableClient(ctx context.Context, in Able) (ClientInfo, error) {
	c, err := a.svc.Clients.Update(ctx, in.ID, func(c *apitoken.Client) error { c.Disabled = in.Disabled; return nil })
	return clientForm(c), err
}

func (a *api) roles(context.Context, None) (Page[Role], error) {
	p := Page[Role]{Items: []Role{}}
	for name, scopes := range a.svc.Roles() {
		p.Items = append(p.Items, Role{name, some(scopes)})
	}
	slices.SortFunc(p.Items, func(x, y Role) int { return strings.Compare(x.Name, y.Name) })
	return p, nil
}

func (a *api) setRole(ctx context.Context, in Role) (Role, error) {
	return in, a.svc.SetRole(ctx, in.Name, in.Scopes)
}

func (a *api) revoke(ctx context.Context, in Revocation) (None, error) {
	if err := because(in.Reason); err != nil {
		return None{}, err
	}
	return None{}, a.svc.Revoke(ctx, in.Target, in.Reason)
}

func (a *api) leaked(ctx context.Context, in LeakedText) (Ended, error) {
	if err := because(in.Reason); err != nil {
		return Ended{}, err
	}
	n, err := a.svc.RevokeLeaked(ctx, []byte(in.Text), in.Reason)
	return Ended{n}, err
}

func (a *api) explain(ctx context.Context, in Question) (Answer, error) {
	need := apitoken.Authenticated()
	if err := check(in.Needs); err != nil {
		return Answer{}, err
	}
	switch {
	case len(in.Needs) > 0 && in.Any:
		need = apitoken.AnyOf(in.Needs[0], in.Needs[1:]...)
	case len(in.Needs) > 0:
		need = apitoken.AllOf(in.Needs[0], in.Needs[1:]...)
	}
	x := a.svc.Explain(ctx, apitoken.Bearer(in.Token), need)
	out := Answer{Good: x.Err == nil, Steps: []Step{}}
	for _, s := range x.Steps {
		out.Steps = append(out.Steps, Step{s.Name, s.OK, s.Detail})
	}
	if x.Err != nil {
		out.Class = "failed"
		for _, c := range classes {
			if errors.Is(x.Err, c.err) {
				out.Class = c.name
				break
			}
		}
		if e := (*apitoken.Error)(nil); errors.As(x.Err, &e) {
			out.Detail = e.Detail
		}
	}
	if t := x.Token; !t.IsZero() {
		out.Token = &TokenInfo{Kind: string(t.Kind()), ID: t.ID(), Issuer: t.Issuer(), Subject: t.Subject(), Client: t.Client(), Session: t.Grant(), Audiences: t.Audiences(),
			Scopes: some(t.Scopes()), Roles: t.Roles(), Actors: t.Actors(), Issued: t.IssuedAt().UTC(), Expires: utc(t.ExpiresAt()), Binding: t.Binding()}
	}
	return out, nil
}

// check refuses scopes at which AllOf and AnyOf would panic.
func check(s apitoken.Scopes) error {
	for _, one := range s {
		if !isScope(one) {
			return &apitoken.Error{Code: apitoken.ErrInvalidScope, Detail: "needs holds what is no scope (RFC 6749 §3.3)"}
		}
	}
	return nil
}

func isScope(s apitoken.Scope) bool {
	list, err := apitoken.ParseScopes(string(s))
	return err == nil && len(list) == 1
}

func (a *api) events(ctx context.Context, in EventQuery) (Events, error) {
	list, next, err := a.svc.EventPage(ctx, apitoken.EventQuery{Subject: in.Subject, Client: in.Client, TokenID: in.TokenID, Grant: in.Grant, Issuer: in.Issuer,
		Type: event.Type(in.Type), From: in.From, To: in.To, OldestFirst: in.OldestFirst}, in.Cursor, in.Limit)
	if list == nil {
		list = []apitoken.Event{}
	}
	return Events{list, next}, err
}

func (a *api) event(ctx context.Context, in ID) (apitoken.Event, error) {
	return a.svc.Event(ctx, in.ID)
}

func (a *api) signingKeys(ctx context.Context, _ None) (Page[SigningKeyInfo], error) {
	list, err := a.svc.SigningKeys.List(ctx)
	p := Page[SigningKeyInfo]{Items: []SigningKeyInfo{}}
	for _, k := range list {
		p.Items = append(p.Items, SigningKeyInfo{ID: k.ID, Algorithm: k.Algorithm, Audience: k.Audience, State: k.State, Since: k.Since.UTC(), Outside: k.Outside, JWK: k.JWK})
	}
	return p, err
}

func (a *api) rotateSigning(ctx context.Context, _ None) (None, error) {
	return None{}, a.svc.SigningKeys.Rotate(ctx)
}

func (a *api) rotateSecrets(ctx context.Context, _ None) (None, error) {
	return None{}, a.svc.SigningKeys.RotateSecrets(ctx)
}

func (a *api) rewrap(ctx context.Context, _ None) (None, error) {
	_, err := a.svc.SigningKeys.Rewrap(ctx)
	return None{}, err
}

func (a *api) compromise(ctx context.Context, in Ending) (None, error) {
	if err := because(in.Reason); err != nil {
		return None{}, err
	}
	return None{}, a.svc.SigningKeys.Compromise(ctx, in.ID, in.Reason)
}

func (a *api) expiring(ctx context.Context, in ExpiryQuery) (Page[Expiry], error) {
	if in.Before.IsZero() {
		in.Before = a.svc.Now().Add(30 * 24 * time.Hour)
	}
	p := Page[Expiry]{Items: []Expiry{}}
	limit := pageLimit(in.Limit)
	for x, err := range a.svc.Expiring(ctx, in.Before, false) {
		if err != nil {
			return p, err
		}
		p.Items = append(p.Items, Expiry{x.Kind, x.ID, x.Owner, x.Client, x.Name, x.Ends.UTC()})
		if len(p.Items) >= 4*maxPage {
			p.Items = firstToEnd(p.Items, limit)
		}
	}
	p.Items = firstToEnd(p.Items, limit)
	return p, nil
}

func firstToEnd(list []Expiry, limit int) []Expiry {
	slices.SortFunc(list, func(x, y Expiry) int { return x.Ends.Compare(y.Ends) })
	return list[:min(len(list), limit)]
}

func (a *api) unreadable(ctx context.Context, in UnreadableQuery) (Page[Unreadable], error) {
	p := Page[Unreadable]{Items: []Unreadable{}}
	for r, err := range a.svc.Unreadable(ctx, in.All) {
		if err != nil {
			return p, err
		}
		why := "cannot be read"
		if r.Err != nil {
			why = r.Err.Error()
		}
		if p.Items = append(p.Items, Unreadable{string(r.Kind), r.ID, why}); len(p.Items) == maxPage {
			break
		}
	}
	return p, nil
}

func (a *api) remove(ctx context.Context, in Unreadable) (None, error) {
	return None{}, a.svc.Remove(ctx, store.Kind(in.Kind), in.ID)
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
