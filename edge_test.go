package apitoken_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// ailing is a store that answers what it has, errors, or what nobody can read.
type ailing struct {
	store.Store
	mode atomic.Int32
}

const (
	sound = iota
	down
	damaged
)

var errDown = errors.New("the store is down")

func (a *ailing) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if a.mode.Load() == down {
		return store.Record{}, errDown
	}
	r, err := a.Store.Get(ctx, kind, id)
	return a.spoil(r), err
}

func (a *ailing) List(ctx context.Context, q store.Query) (store.Page, error) {
	if a.mode.Load() == down {
		return store.Page{}, errDown
	}
	p, err := a.Store.List(ctx, q)
	for i, r := range p.Records {
		p.Records[i] = a.spoil(r)
	}
	return p, err
}

func (a *ailing) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if a.mode.Load() == down {
		return store.Commit{}, errDown
	}
	return a.Store.Apply(ctx, c)
}

func (a *ailing) spoil(r store.Record) store.Record {
	if a.mode.Load() == damaged {
		r.Data = []byte(`{"v":1,"from_a_later_version":true}`)
	}
	return r
}

// Internal packages return errors of their own type. Each exported call returns an error of this package, whatever it is given and
// whatever the store does.
func TestNoErrorOfAPackageBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, noErrorOfAPackageBehind) // its clock makes the retries against a store that is down short
}

func noErrorOfAPackageBehind(t *testing.T) {
	ctx := t.Context()
	st := &ailing{Store: memstore.New()}
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true,
		Limits: apitoken.Limits{APIKeysPerSubject: 5, GrantsPerSubject: 3}, KeyHashes: map[string]keyhash.Form{"sha256": keyhash.SHA256("")}})
	require.NoError(t, err)
	defer svc.Close()
	login := issue(t, svc, apitoken.Request{Subject: "alice", Refresh: true})
	key, keySecret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", MaxUses: 100})
	require.NoError(t, err)
	c, secret, err := svc.Clients.Create(ctx, apitoken.Client{GrantTypes: []string{"refresh_token", "client_credentials"}})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: c.ID, Secret: secret}
	ticket, err := svc.Prepare(ctx, apitoken.Request{Subject: "alice"}, apitoken.Ticket{Lifetime: time.Hour})
	require.NoError(t, err)
	registered, _, registration, err := svc.Clients.Register(ctx, apitoken.Client{Public: true, RedirectURIs: []string{"https://app.example.com/cb"}, GrantTypes: []string{"authorization_code"}})
	require.NoError(t, err)
	a := svc.Adapter()
	token := func() apitoken.Token {
		k, err := svc.Validate(ctx, apitoken.Bearer(keySecret.Reveal()))
		require.NoError(t, err)
		return k
	}()

	calls := map[string]func(id string) error{
		"Issue":        func(id string) error { return fails(svc.Issue(ctx, apitoken.Request{Subject: id})) },
		"Issue, grant": func(string) error { return fails(svc.Issue(ctx, apitoken.Request{Grant: login.Token.Grant()})) },
		"Issue, auth":  func(string) error { return fails(svc.Issue(ctx, apitoken.Request{Auth: auth})) },
		"Refresh": func(string) error {
			return fails(svc.Refresh(ctx, apitoken.RefreshRequest{Token: login.Refresh.Reveal()}))
		},
		"Exchange": func(string) error {
			return fails(svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(login.Access.Reveal()), Auth: auth}))
		},
		"Prepare": func(id string) error {
			return fails(svc.Prepare(ctx, apitoken.Request{Subject: id}, apitoken.Ticket{Lifetime: time.Hour}))
		},
		"Redeem":           func(string) error { return fails(svc.Redeem(ctx, apitoken.Redemption{Ticket: ticket.Reveal()})) },
		"Consume":          func(string) error { return svc.Consume(ctx, token) },
		"Grants":           func(string) error { return firstError(svc.Grants(ctx, apitoken.BySubject("alice"), apitoken.Page{})) },
		"Expiring":         func(string) error { return firstError(svc.Expiring(ctx, time.Now().Add(1e6*time.Hour), true)) },
		"Events":           func(string) error { return firstError(svc.Events(ctx, apitoken.EventQuery{})) },
		"EventPage":        func(id string) error { _, _, err := svc.EventPage(ctx, apitoken.EventQuery{}, id, 10); return err },
		"Event":            func(id string) error { return fails(svc.Event(ctx, id)) },
		"Alert":            func(id string) error { return svc.Alert(ctx, apitoken.Event{Reason: id}) },
		"Usage, grant":     func(string) error { return fails(svc.Usage(ctx, apitoken.ByGrant(login.Token.Grant()))) },
		"Usage, key":       func(string) error { return fails(svc.Usage(ctx, apitoken.ByToken(key.ID))) },
		"SetRole":          func(id string) error { return svc.SetRole(ctx, id, apitoken.Scopes{"a"}) },
		"Sync":             func(string) error { return svc.Sync(ctx) },
		"TargetOf":         func(id string) error { return fails(svc.TargetOf(ctx, id)) },
		"TargetOf key":     func(string) error { return fails(svc.TargetOf(ctx, keySecret.Reveal())) },
		"TargetOf refresh": func(string) error { return fails(svc.TargetOf(ctx, login.Refresh.Reveal())) },
		"RevokeLeaked": func(string) error {
			return fails(svc.RevokeLeaked(ctx, []byte(secret.Reveal()+" "+registration.Reveal()+" "+ticket.Reveal()), "test"))
		},
		"Revoke":      func(id string) error { return svc.Revoke(ctx, apitoken.ByClient(id), "test") },
		"Unreadable":  func(string) error { return firstError(svc.Unreadable(ctx, true)) },
		"Repair":      func(string) error { return svc.Repair(ctx, store.KindAPIKey, key.ID, []byte("{}")) },
		"Remove":      func(id string) error { return svc.Remove(ctx, store.KindRole, id) },
		"Revocations": func(string) error { return fails(svc.Revocations(ctx, store.Position{}, 10)) },

		"Clients.Create": func(id string) error { _, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: id}); return err },
		"Clients.Create, keys": func(string) error {
			_, _, err := svc.Clients.Create(ctx, apitoken.Client{Keys: []byte("{")})
			return err
		},
		"Clients.Get":     func(id string) error { return fails(svc.Clients.Get(ctx, id)) },
		"Clients.Secrets": func(string) error { return fails(svc.Clients.Secrets(ctx, c.ID)) },
		"Clients.Known":   func(id string) error { return fails(svc.Clients.Known(ctx, id)) },
		"Clients.List":    func(string) error { return firstError(svc.Clients.List(ctx, apitoken.Page{})) },
		"Clients.Update": func(string) error {
			return fails(svc.Clients.Update(ctx, c.ID, func(c *apitoken.Client) error { c.Name = "x"; return nil }))
		},
		"Clients.Update, keys": func(string) error {
			return fails(svc.Clients.Update(ctx, c.ID, func(c *apitoken.Client) error { c.TLSName = "nothing"; return nil }))
		},
		"Clients.RotateSecret": func(string) error { return fails(svc.Clients.RotateSecret(ctx, c.ID, time.Hour)) },
		"Clients.Declare": func(id string) error {
			return svc.Clients.Declare(ctx, apitoken.Client{ID: id}, apitoken.NewSecret("short"))
		},
		"Clients.Authenticate": func(id string) error {
			return fails(svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: id, Secret: secret}))
		},
		"Clients.Confirm": func(string) error { _, _, err := svc.Clients.Confirm(ctx, auth); return err },
		"Clients.Register": func(id string) error {
			_, _, _, err := svc.Clients.Register(ctx, apitoken.Client{ID: id, RedirectURIs: []string{"::"}})
			return err
		},
		"Clients.RegistrationToken": func(string) error { return fails(svc.Clients.RegistrationToken(ctx, registered.ID)) },
		"Clients.Registered":        func(id string) error { return fails(svc.Clients.Registered(ctx, id, registration)) },
		"Clients.Reregister": func(string) error {
			return fails(svc.Clients.Reregister(ctx, registered.ID, registration, func(c *apitoken.Client) error { c.Name = "x"; return nil }))
		},
		"Clients.Adopt": func(id string) error {
			return fails(svc.Clients.Adopt(ctx, apitoken.Client{ID: id, Public: true, RedirectURIs: []string{"https://app.example.com/cb"}}, 10))
		},
		"Clients.Keep": func(id string) error { return svc.Clients.Keep(ctx, id) },

		"SigningKeys.List":          func(string) error { return fails(svc.SigningKeys.List(ctx)) },
		"SigningKeys.Rotate":        func(string) error { return svc.SigningKeys.Rotate(ctx) },
		"SigningKeys.RotateSecrets": func(string) error { return svc.SigningKeys.RotateSecrets(ctx) },
		"SigningKeys.Rewrap":        func(string) error { return fails(svc.SigningKeys.Rewrap(ctx)) },
		"SigningKeys.Compromise":    func(id string) error { return svc.SigningKeys.Compromise(ctx, "k"+id, "test") },
		"SigningKeys.ImportFor":     func(id string) error { return fails(svc.SigningKeys.ImportFor(ctx, id, nil, "EdDSA")) },

		"Adapter.Note":       func(id string) error { return fails(a.Note(ctx, id)) },
		"Adapter.ChangeNote": func(id string) error { return a.ChangeNote(ctx, id, func(n *apitoken.Note) error { return nil }) },
		"Adapter.Once":       func(id string) error { return a.Once(ctx, id, time.Now().Add(time.Hour)) },
		"Adapter.DoOnce": func(id string) error {
			return fails(a.DoOnce(ctx, id, time.Now().Add(time.Hour), func(context.Context) error { return nil }))
		},
		"Adapter.Genuine":           func(string) error { return a.Genuine(ctx, ticket.Reveal()) },
		"Adapter.Introspect":        func(string) error { return fails(a.Introspect(ctx, login.Refresh.Reveal())) },
		"Adapter.Introspect, key":   func(string) error { return fails(a.Introspect(ctx, keySecret.Reveal())) },
		"Adapter.Check":             func(id string) error { return a.Check(ctx, apitoken.Request{Client: id, Subject: "alice"}) },
		"Adapter.SignIntrospection": func(id string) error { return fails(a.SignIntrospection(ctx, id, []byte("{"))) },
	}
	for who, keys := range map[string]*apitoken.APIKeys{"APIKeys": svc.APIKeys, "APIKeys.For": svc.APIKeys.For(login.Token)} {
		calls[who+".Create"] = func(id string) error {
			return failed(keys.Create(ctx, apitoken.APIKeyRequest{Subject: id, UsesPer: "week"}))
		}
		calls[who+".Rotate"] = func(string) error { return failed(keys.Rotate(ctx, key.ID, time.Hour)) }
		calls[who+".Get"] = func(id string) error { return fails(keys.Get(ctx, id)) }
		calls[who+".Rename"] = func(string) error { return fails(keys.Rename(ctx, key.ID, "two\nlines")) }
		calls[who+".Edit"] = func(string) error {
			return fails(keys.Edit(ctx, key.ID, func(k *apitoken.APIKey) error { k.Metadata = map[string]string{"": ""}; return nil }))
		}
		calls[who+".Find"] = func(id string) error {
			_, _, err := keys.Find(ctx, apitoken.APIKeyQuery{Cursor: id})
			return err
		}
		calls[who+".List"] = func(string) error { return firstError(keys.List(ctx, apitoken.Page{})) }
		calls[who+".Of"] = func(id string) error { return firstError(keys.Of(ctx, id, apitoken.Page{})) }
		calls[who+".Revoke"] = func(id string) error { return keys.Revoke(ctx, id, "test") }
		calls[who+".Import"] = func(id string) error {
			x := apitoken.ImportedKey{Form: "sha256", Hash: id, APIKeyRequest: apitoken.APIKeyRequest{Subject: "alice"}}
			return fails(keys.Import(ctx, slices.Values([]apitoken.ImportedKey{x})))
		}
	}
	ids := []string{"", "two words", "\x00", "ordinary", key.ID, c.ID, registered.ID, "a/" + string(make([]byte, 300))}
	for _, mode := range []int32{down, damaged, sound} { // what a sound store gets is wrong itself
		st.mode.Store(mode)
		for name, call := range calls {
			for _, id := range ids {
				err := call(id)
				var behind *fault.Error
				require.False(t, errors.As(err, &behind), "%s(%.20q), mode %d: %v", name, id, mode, err)
			}
		}
	}
	st.mode.Store(sound)
}

func fails[T any](_ T, err error) error { return err }

func failed(_ apitoken.APIKey, _ apitoken.Secret, err error) error { return err }

func firstError[T any](list iter.Seq2[T, error]) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}
