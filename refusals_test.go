package apitoken_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"iter"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// office is a service with one confidential client that may do little, and alice's session at it.
type office struct {
	svc   *apitoken.Service
	app   apitoken.ClientAuth
	alice *apitoken.Issued
	fired bool // by MayContinue
}

func openOffice(t *testing.T) *office {
	o := &office{}
	o.svc = serviceOn(t, memstore.New(), func(c *apitoken.Config) {
		c.MayContinue = func(context.Context, apitoken.Grant) error {
			if o.fired {
				return errors.New("has left")
			}
			return nil
		}
	})
	_, secret, err := o.svc.Clients.Create(t.Context(), apitoken.Client{ID: "app", Scopes: apitoken.Scopes{"orders"}, RedirectURIs: []string{"https://app.example.com/cb"},
		GrantTypes: []string{"client_credentials", "authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"}})
	require.NoError(t, err)
	o.app = apitoken.ClientAuth{ID: "app", Secret: secret}
	o.alice = issue(t, o.svc, apitoken.Request{Subject: "alice", Client: "app", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	return o
}

// first is the first error of a list.
func first[T any](list iter.Seq2[T, error]) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

// A trace is what a refusing call leaves: who, what, and the limit that said no. Subject, Client and Extra's members stand as in
// the event; why is a part of it.
type trace struct {
	call            func(t *testing.T, o *office) error
	kind            event.Type // zero: EventRefused
	reason          string
	subject, client string
	claimed, why    string
}

// What leaves no refusal says here why not.
const (
	asksForTheHost = "only the host's own code calls it, and the error says what is wrong"
	isAQuestion    = "it answers a question and decides nothing"
	namesNobody    = "what it is given proves no name: the call that presents it is recorded with the caller's"
	hasNoLog       = "a validator without a service has no log; its Observer hears of each refusal"
)

// keyOf makes bob's API key, which is none of alice's.
func keyOf(t *testing.T, o *office, r apitoken.APIKeyRequest) (apitoken.APIKey, apitoken.Secret) {
	t.Helper()
	k, secret, err := o.svc.APIKeys.Create(t.Context(), r)
	require.NoError(t, err)
	return k, secret
}

// ended ends alice's session.
func (o *office) ended(t *testing.T) {
	t.Helper()
	require.NoError(t, o.svc.Revoke(t.Context(), apitoken.ByGrant(o.alice.Token.Grant()), "left"))
}

// keys are alice's, as she sees them through the client.
func (o *office) keys() *apitoken.APIKeys { return o.svc.APIKeys.For(o.alice.Token) }

// refusalRows has a row for each public call that may refuse: what it leaves, or why it leaves nothing.
var refusalRows = map[string]any{
	"Service.Alert": asksForTheHost, "Adapter.ChangeNote": asksForTheHost, "Adapter.Check": isAQuestion, "Service.Close": asksForTheHost,
	"Adapter.DoOnce": asksForTheHost, "Service.Event": asksForTheHost, "Service.EventPage": asksForTheHost, "Service.Events": asksForTheHost, "Service.Expiring": asksForTheHost,
	"Service.Feed": asksForTheHost, "Adapter.Genuine": namesNobody, "Service.Grants": asksForTheHost, "Adapter.Note": asksForTheHost,
	"Adapter.Once": namesNobody, "Adapter.Prove": namesNobody, "Service.Remove": asksForTheHost, "Service.Repair": asksForTheHost,
	"Service.Revocations": asksForTheHost, "Service.RevokeLeaked": asksForTheHost, "Service.SetRole": asksForTheHost,
	"Adapter.SignIntrospection": asksForTheHost, "Service.Sync": asksForTheHost, "Service.TargetOf": isAQuestion, "Service.Unreadable": asksForTheHost,
	"Service.Usage": asksForTheHost, "Adapter.Wait": asksForTheHost,
	"Clients.Adopt": "what a client says of itself proves no caller: anybody may name it", "Clients.Keep": asksForTheHost, "Clients.Create": asksForTheHost, "Clients.Declare": asksForTheHost, "Clients.Get": asksForTheHost, "Clients.Known": isAQuestion,
	"Clients.List": asksForTheHost, "Clients.Register": asksForTheHost, "Clients.RegistrationToken": asksForTheHost,
	"Clients.RotateSecret": asksForTheHost, "Clients.Secrets": asksForTheHost, "Clients.Update": asksForTheHost,
	"SigningKeys.Compromise": asksForTheHost, "SigningKeys.Import": asksForTheHost, "SigningKeys.ImportFor": asksForTheHost, "SigningKeys.JWKS": isAQuestion,
	"SigningKeys.Keyfunc": isAQuestion, "SigningKeys.List": asksForTheHost, "SigningKeys.Rewrap": asksForTheHost, "SigningKeys.Rotate": asksForTheHost, "SigningKeys.RotateSecrets": asksForTheHost,
	"JWTValidator.Close": asksForTheHost, "JWTValidator.Ready": isAQuestion,
	"JWTValidator.Consume": hasNoLog, "JWTValidator.Recheck": hasNoLog, "JWTValidator.Validate": hasNoLog,
	"Token.Check": isAQuestion, "Token.Claims": isAQuestion,

	"Service.Consume": trace{reason: "limited", subject: "bob", why: "no uses left", call: func(t *testing.T, o *office) error {
		_, secret := keyOf(t, o, apitoken.APIKeyRequest{Subject: "bob", Scopes: apitoken.Scopes{"orders"}, MaxUses: 1})
		token, err := o.svc.Validate(t.Context(), apitoken.Bearer(secret.Reveal()))
		require.NoError(t, err)
		require.NoError(t, o.svc.Consume(t.Context(), token))
		return o.svc.Consume(t.Context(), token)
	}},
	"Service.Exchange": trace{reason: "exchange", subject: "alice", client: "app", why: "only with an actor's token", call: func(t *testing.T, o *office) error {
		_, err := o.svc.Exchange(t.Context(), apitoken.ExchangeRequest{Auth: o.app, Token: apitoken.Bearer(o.alice.Access.Reveal())})
		return err
	}},
	"Adapter.Introspect": trace{reason: "revoked", subject: "alice", client: "app", call: func(t *testing.T, o *office) error {
		o.ended(t)
		x, err := o.svc.Adapter().Introspect(t.Context(), o.alice.Access.Reveal())
		require.NoError(t, err)
		require.False(t, x.Active)
		return apitoken.ErrInvalidToken
	}},
	"Service.Issue": trace{reason: "issue", client: "app", why: `"admin"`, call: func(t *testing.T, o *office) error {
		_, err := o.svc.Issue(t.Context(), apitoken.Request{Auth: o.app, Scopes: apitoken.Scopes{"admin"}})
		return err
	}},
	"Service.Prepare": trace{reason: "prepare", client: "app", why: `"admin"`, call: func(t *testing.T, o *office) error {
		_, err := o.svc.Prepare(t.Context(), apitoken.Request{Auth: o.app, Subject: "alice", Scopes: apitoken.Scopes{"admin"}}, apitoken.Ticket{Lifetime: time.Minute})
		return err
	}},
	"Service.Recheck": trace{reason: "revoked", subject: "alice", client: "app", call: func(t *testing.T, o *office) error {
		o.ended(t)
		return o.svc.Recheck(t.Context(), o.alice.Token)
	}},
	"Service.Redeem": trace{reason: "redeem", subject: "alice", client: "app", why: "RFC 7636", call: func(t *testing.T, o *office) error {
		sum := sha256.Sum256([]byte(strings.Repeat("v", 43)))
		code, err := o.svc.Prepare(t.Context(), apitoken.Request{Subject: "alice", Client: "app"}, apitoken.Ticket{Lifetime: time.Minute, Challenge: base64.RawURLEncoding.EncodeToString(sum[:])})
		require.NoError(t, err)
		_, err = o.svc.Redeem(t.Context(), apitoken.Redemption{Ticket: code.Reveal(), Auth: o.app, Verifier: strings.Repeat("w", 43)})
		return err
	}},
	"Service.Redeem of junk": trace{reason: "redeem", client: "app", call: func(t *testing.T, o *office) error {
		_, auth, err := o.svc.Clients.Confirm(t.Context(), o.app)
		require.NoError(t, err)
		_, err = o.svc.Redeem(t.Context(), apitoken.Redemption{Ticket: "junk", Auth: auth})
		return err
	}},
	"Service.Refresh": trace{reason: "refresh", subject: "alice", client: "app", why: "MayContinue", call: func(t *testing.T, o *office) error {
		o.fired = true
		_, err := o.svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: o.alice.Refresh.Reveal(), Auth: o.app})
		return err
	}},
	"Service.Refresh of junk": trace{reason: "refresh", client: "app", call: func(t *testing.T, o *office) error {
		_, auth, err := o.svc.Clients.Confirm(t.Context(), o.app)
		require.NoError(t, err)
		_, err = o.svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: "junk", Auth: auth})
		return err
	}},
	"Service.Revoke": trace{reason: "revoke", subject: "mallory", why: "another", call: func(t *testing.T, o *office) error {
		return o.svc.Revoke(t.Context(), apitoken.ByGrant(o.alice.Token.Grant()).OwnedBy("mallory"), "x")
	}},
	"Service.Revoke by a public client": trace{reason: "revoke", claimed: "pub", call: func(t *testing.T, o *office) error {
		_, _, err := o.svc.Clients.Create(t.Context(), apitoken.Client{ID: "pub", Public: true, GrantTypes: []string{"refresh_token"}})
		require.NoError(t, err)
		return o.svc.Revoke(t.Context(), apitoken.ByGrant(o.alice.Token.Grant()).HeldBy("pub"), "x")
	}},
	"Service.Validate": trace{reason: "revoked", subject: "alice", client: "app", call: func(t *testing.T, o *office) error {
		o.ended(t)
		return validate(o.svc, o.alice.Access)
	}},
	"Authorize": trace{reason: "scope", subject: "alice", client: "app", call: func(t *testing.T, o *office) error {
		_, err := apitoken.Authorize(t.Context(), o.svc, apitoken.Bearer(o.alice.Access.Reveal()), apitoken.AllOf("admin"))
		return err
	}},
	"Token.Recheck": trace{reason: "revoked", subject: "alice", client: "app", call: func(t *testing.T, o *office) error {
		token, err := o.svc.Validate(t.Context(), apitoken.Bearer(o.alice.Access.Reveal()))
		require.NoError(t, err)
		o.ended(t)
		return token.Recheck(t.Context())
	}},

	"Clients.Authenticate": trace{kind: event.ClientRefused, reason: "client", claimed: "app", call: func(t *testing.T, o *office) error {
		_, err := o.svc.Clients.Authenticate(t.Context(), apitoken.ClientAuth{ID: "app", Secret: apitoken.NewSecret("wrong")})
		return err
	}},
	"Clients.Authenticate of a disabled client": trace{kind: event.ClientRefused, reason: "denied", client: "app", why: "disabled", call: func(t *testing.T, o *office) error {
		_, err := o.svc.Clients.Update(t.Context(), "app", func(c *apitoken.Client) error { c.Disabled = true; return nil })
		require.NoError(t, err)
		_, err = o.svc.Clients.Authenticate(t.Context(), o.app)
		return err
	}},
	"Clients.Confirm": trace{kind: event.ClientRefused, reason: "client", claimed: "app", call: func(t *testing.T, o *office) error {
		_, auth, err := o.svc.Clients.Confirm(t.Context(), o.app)
		require.NoError(t, err)
		_, err = o.svc.Clients.RotateSecret(t.Context(), "app", 0)
		require.NoError(t, err)
		_, _, err = o.svc.Clients.Confirm(t.Context(), auth)
		return err
	}},
	"Clients.Registered": trace{reason: "registration", client: "app", why: "disabled", call: func(t *testing.T, o *office) error {
		token, err := o.svc.Clients.RegistrationToken(t.Context(), "app")
		require.NoError(t, err)
		_, err = o.svc.Clients.Update(t.Context(), "app", func(c *apitoken.Client) error { c.Disabled = true; return nil })
		require.NoError(t, err)
		_, err = o.svc.Clients.Registered(t.Context(), "app", token)
		return err
	}},
	"Clients.Registered with another's token": trace{reason: "registration", claimed: "app", why: "another registration token", call: func(t *testing.T, o *office) error {
		_, err := o.svc.Clients.RegistrationToken(t.Context(), "app")
		require.NoError(t, err)
		_, _, err = o.svc.Clients.Create(t.Context(), apitoken.Client{ID: "other", GrantTypes: []string{"client_credentials"}})
		require.NoError(t, err)
		other, err := o.svc.Clients.RegistrationToken(t.Context(), "other")
		require.NoError(t, err)
		_, err = o.svc.Clients.Registered(t.Context(), "app", other)
		return err
	}},
	"Clients.Reregister": trace{reason: "registration", client: "app", why: "not with us", call: func(t *testing.T, o *office) error {
		token, err := o.svc.Clients.RegistrationToken(t.Context(), "app")
		require.NoError(t, err)
		_, err = o.svc.Clients.Reregister(t.Context(), "app", token, func(*apitoken.Client) error { return errors.New("not with us") })
		return err
	}},
	"Clients.Reregister beyond what the host left": trace{reason: "registration", client: "app", why: "the host has taken", call: func(t *testing.T, o *office) error {
		token, err := o.svc.Clients.RegistrationToken(t.Context(), "app")
		require.NoError(t, err)
		_, err = o.svc.Clients.Reregister(t.Context(), "app", token, func(c *apitoken.Client) error {
			c.GrantTypes, c.RedirectURIs = []string{"urn:ietf:params:oauth:grant-type:device_code"}, nil
			return nil
		})
		return err
	}},

	"APIKeys.Create": trace{reason: "apikey", subject: "alice", client: "app", why: `"admin"`, call: func(t *testing.T, o *office) error {
		_, _, err := o.keys().Create(t.Context(), apitoken.APIKeyRequest{Scopes: apitoken.Scopes{"admin"}})
		return err
	}},
	"APIKeys.Find": trace{reason: "apikey", subject: "alice", client: "app", why: "another subject", call: func(t *testing.T, o *office) error {
		_, _, err := o.keys().Find(t.Context(), apitoken.APIKeyQuery{Subject: "bob"})
		return err
	}},
	"APIKeys.Get": trace{reason: "apikey", subject: "alice", client: "app", why: "another subject's", call: func(t *testing.T, o *office) error {
		k, _ := keyOf(t, o, apitoken.APIKeyRequest{Subject: "bob"})
		_, err := o.keys().Get(t.Context(), k.ID)
		return err
	}},
	"APIKeys.Edit": trace{reason: "apikey", subject: "alice", client: "app", why: "only the host disables", call: func(t *testing.T, o *office) error {
		k, _ := keyOf(t, o, apitoken.APIKeyRequest{Subject: "alice"})
		_, err := o.keys().Edit(t.Context(), k.ID, func(x *apitoken.APIKey) error { x.Disabled = true; return nil })
		return err
	}},
	"APIKeys.Import": trace{reason: "apikey", subject: "alice", client: "app", why: "only the host", call: func(t *testing.T, o *office) error {
		_, err := o.keys().Import(t.Context(), func(func(apitoken.ImportedKey) bool) {})
		return err
	}},
	"APIKeys.List": trace{reason: "revoked", subject: "alice", client: "app", call: func(t *testing.T, o *office) error {
		o.ended(t)
		return first(o.keys().List(t.Context(), apitoken.Page{}))
	}},
	"APIKeys.Of": trace{reason: "apikey", subject: "alice", client: "app", why: "another subject", call: func(t *testing.T, o *office) error {
		return first(o.keys().Of(t.Context(), "bob", apitoken.Page{}))
	}},
	"APIKeys.Rename": trace{reason: "apikey", subject: "alice", client: "app", why: "another subject's", call: func(t *testing.T, o *office) error {
		k, _ := keyOf(t, o, apitoken.APIKeyRequest{Subject: "bob"})
		_, err := o.keys().Rename(t.Context(), k.ID, "mine")
		return err
	}},
	"APIKeys.Rename to what is no name": trace{reason: "apikey", subject: "alice", client: "app", why: "100 bytes", call: func(t *testing.T, o *office) error {
		k, _ := keyOf(t, o, apitoken.APIKeyRequest{Subject: "alice"})
		_, err := o.keys().Rename(t.Context(), k.ID, "\x00")
		return err
	}},
	"APIKeys.Revoke": trace{reason: "apikey", subject: "alice", client: "app", why: "another subject's", call: func(t *testing.T, o *office) error {
		k, _ := keyOf(t, o, apitoken.APIKeyRequest{Subject: "bob"})
		return o.keys().Revoke(t.Context(), k.ID, "x")
	}},
	"APIKeys.Rotate": trace{reason: "apikey", subject: "alice", client: "app", why: "another subject's", call: func(t *testing.T, o *office) error {
		k, _ := keyOf(t, o, apitoken.APIKeyRequest{Subject: "bob"})
		_, _, err := o.keys().Rotate(t.Context(), k.ID, 0)
		return err
	}},
	"APIKeys.Rotate with less than the key holds": trace{reason: "apikey", subject: "alice", client: "app", why: "all that the key holds", call: func(t *testing.T, o *office) error {
		k, _ := keyOf(t, o, apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"admin"}})
		_, _, err := o.keys().Rotate(t.Context(), k.ID, 0)
		return err
	}},
}

// TestEveryRefusingCallLeavesATrace walks the public calls that return an error. A new one needs a row, and a row that refuses
// something authentic needs the event: once, with who was refused and which limit said no.
func TestEveryRefusingCallLeavesATrace(t *testing.T) {
	t.Parallel()
	isError := reflect.TypeFor[error]()
	refuses := func(m reflect.Type) bool {
		for i := range m.NumOut() {
			out := m.Out(i)
			if out == isError || out.Kind() == reflect.Func && out.NumIn() == 1 && out.In(0).Kind() == reflect.Func && out.In(0).NumIn() == 2 && out.In(0).In(1) == isError {
				return true
			}
		}
		return false
	}
	for _, x := range []reflect.Type{reflect.TypeFor[*apitoken.Service](), reflect.TypeFor[*apitoken.Clients](), reflect.TypeFor[*apitoken.APIKeys](),
		reflect.TypeFor[*apitoken.SigningKeys](), reflect.TypeFor[*apitoken.JWTValidator](), reflect.TypeFor[apitoken.Token]()} {
		for i := range x.NumMethod() {
			name := strings.TrimPrefix(strings.TrimPrefix(x.String(), "*"), "apitoken.") + "." + x.Method(i).Name
			if refuses(x.Method(i).Type) {
				_, ok := refusalRows[name]
				require.True(t, ok, "%s: a call that may refuse has no row: what it leaves in the log, or why nothing", name)
			}
		}
	}

	for name, row := range refusalRows {
		x, ok := row.(trace)
		if !ok {
			continue // a reason
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := openOffice(t)
			require.Error(t, x.call(t, o))
			if x.kind == "" {
				x.kind = event.Refused
			}
			var list []apitoken.Event
			for _, e := range events(t, o.svc, apitoken.EventQuery{}) {
				if e.Type == event.Refused || e.Type == event.ClientRefused {
					list = append(list, e)
				}
			}
			require.Len(t, list, 1, "one refusal is one event")
			e := list[0]
			require.Equal(t, 1, e.Count, "and is counted once")
			require.Equal(t, x.kind, e.Type)
			require.Equal(t, [4]string{x.reason, x.subject, x.client, x.claimed}, [4]string{e.Reason, e.Subject, e.Client, e.Extra["claimed"]}, e.Extra["why"])
			require.Contains(t, e.Extra["why"], x.why)
		})
	}
}
