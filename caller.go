package apitoken

import "context"

// caller is the client that asks for something. It is found out once in a request, before anything is planned; each try looks
// whether it still holds.
type caller struct {
	auth   ClientAuth // its ID, and what was proved; zero: no client came, the host itself asks
	public bool       // anybody can call himself that
}

// caller confirms who asks. A zero a is nobody.
func (cs *Clients) caller(ctx context.Context, a ClientAuth) (caller, error) {
	if a.isZero() {
		return caller{}, nil
	}
	c, auth, err := cs.Confirm(ctx, a)
	if err != nil {
		return caller{}, err
	}
	return caller{auth, c.Public}, nil
}

func (x *caller) none() bool { return x.auth.isZero() }

func (x *caller) id() string { return x.auth.ID }

// now is the client as it is known at this try: it may have been disabled since, and its secret may have ended.
func (x *caller) now(cs *Clients) (Client, error) { return cs.still(&x.auth) }
