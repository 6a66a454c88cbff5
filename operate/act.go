package operate

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
)

// Made is what was made, with a secret that is shown this once.
type Made[T any] struct {
	It     T
	Secret apitoken.Secret // zero: it has none
	// Again says that the form was sent before, and done: nothing was made now.
	Again bool
}

// once makes something once for one filled-in form, however often that is sent within a day. name is the form's, empty: it is made
// at each call.
func once[T any](ctx context.Context, a Act, name string, f func(context.Context) (T, apitoken.Secret, error)) (Made[T], error) {
	return wait(ctx, a.turns, func(ctx context.Context) (m Made[T], err error) {
		if name == "" {
			m.It, m.Secret, err = f(ctx)
			return m, err
		}
		did, err := a.svc.Adapter().DoOnce(ctx, name, a.svc.Adapter().Now().Add(24*time.Hour), func(ctx context.Context) (err error) {
			m.It, m.Secret, err = f(ctx)
			return err
		})
		m.Again = err == nil && !did
		return m, err
	})
}

// CreateKey makes an API key.
func (a Act) CreateKey(ctx context.Context, r apitoken.APIKeyRequest) (Made[apitoken.APIKey], error) {
	return once(ctx, a, "", func(ctx context.Context) (apitoken.APIKey, apitoken.Secret, error) {
		return a.svc.APIKeys.Create(ctx, r)
	})
}

// RotateKey makes an API key's successor; the older one works for overlap longer.
func (a Act) RotateKey(ctx context.Context, id string, overlap time.Duration) (Made[apitoken.APIKey], error) {
	return once(ctx, a, "", func(ctx context.Context) (apitoken.APIKey, apitoken.Secret, error) {
		return a.svc.APIKeys.Rotate(ctx, id, overlap)
	})
}

// EditKey changes an API key: its name, scopes, end, metadata, and whether it is refused for now.
func (a Act) EditKey(ctx context.Context, id string, f func(*apitoken.APIKey) error) (apitoken.APIKey, error) {
	return wait(ctx, a.turns, func(ctx context.Context) (apitoken.APIKey, error) { return a.svc.APIKeys.Edit(ctx, id, f) })
}

// RevokeKey ends an API key.
func (a Act) RevokeKey(ctx context.Context, id, reason string) error {
	return a.because(ctx, reason, func(ctx context.Context, reason string) error { return a.svc.APIKeys.Revoke(ctx, id, reason) })
}

// because runs f with a reason that the audit trail takes.
func (a Act) because(ctx context.Context, reason string, f func(context.Context, string) error) error {
	reason, err := Reason(reason)
	if err != nil {
		return err
	}
	return a.do(ctx, func(ctx context.Context) error { return f(ctx, reason) })
}

// CreateClient registers a client, once for one form: see once.
func (a Act) CreateClient(ctx context.Context, form string, c apitoken.Client) (Made[apitoken.Client], error) {
	return once(ctx, a, form, func(ctx context.Context) (apitoken.Client, apitoken.Secret, error) {
		return a.svc.Clients.Create(ctx, c)
	})
}

// RotateClient makes a client another secret, once for one form: see once. The older one works for overlap longer.
func (a Act) RotateClient(ctx context.Context, form, id string, overlap time.Duration) (Made[apitoken.Client], error) {
	return once(ctx, a, form, func(ctx context.Context) (apitoken.Client, apitoken.Secret, error) {
		c, err := a.svc.Clients.Get(ctx, id)
		if err != nil {
			return c, apitoken.Secret{}, err
		}
		secret, err := a.svc.Clients.RotateSecret(ctx, id, overlap)
		return c, secret, err
	})
}

// UpdateClient changes a client. Disabling it ends all it holds.
func (a Act) UpdateClient(ctx context.Context, id string, f func(*apitoken.Client) error) (apitoken.Client, error) {
	return wait(ctx, a.turns, func(ctx context.Context) (apitoken.Client, error) { return a.svc.Clients.Update(ctx, id, f) })
}

// SetRole defines what a role expands to.
func (a Act) SetRole(ctx context.Context, r Role) error {
	return a.do(ctx, func(ctx context.Context) error { return a.svc.SetRole(ctx, r.Name, r.Scopes) })
}

// Revoke ends what a target names. ErrUnavailable: it is in force in this process, which keeps trying to write it.
func (a Act) Revoke(ctx context.Context, t apitoken.Target, reason string) error {
	return a.because(ctx, reason, func(ctx context.Context, reason string) error { return a.svc.Revoke(ctx, t, reason) })
}

// RevokeLeaked ends the credentials of this service that a text holds, and says how many.
func (a Act) RevokeLeaked(ctx context.Context, text []byte, reason string) (int, error) {
	reason, err := Reason(reason)
	if err != nil {
		return 0, err
	}
	return wait(ctx, a.turns, func(ctx context.Context) (int, error) { return a.svc.RevokeLeaked(ctx, text, reason) })
}

// RotateSigningKeys brings a new signing key forward.
func (a Act) RotateSigningKeys(ctx context.Context) error { return a.do(ctx, a.svc.SigningKeys.Rotate) }

// RotateSecrets makes a new root secret.
func (a Act) RotateSecrets(ctx context.Context) error {
	return a.do(ctx, a.svc.SigningKeys.RotateSecrets)
}

// Rewrap seals every root secret again with the current key-encryption key.
func (a Act) Rewrap(ctx context.Context) error {
	return a.do(ctx, func(ctx context.Context) error {
		_, err := a.svc.SigningKeys.Rewrap(ctx)
		return err
	})
}

// Compromise withdraws a signing key at once, with all that it signed.
func (a Act) Compromise(ctx context.Context, id, reason string) error {
	return a.because(ctx, reason, func(ctx context.Context, reason string) error { return a.svc.SigningKeys.Compromise(ctx, id, reason) })
}

// Remove ends a record that can't be read. Nothing that was refused becomes good.
func (a Act) Remove(ctx context.Context, kind store.Kind, id string) error {
	return a.do(ctx, func(ctx context.Context) error { return a.svc.Remove(ctx, kind, id) })
}
