package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// claims are what a token says of itself, believed by nobody.
type claims struct {
	Kind    string         `json:"kind"` // access token, refresh token, API key, ticket or client secret
	Header  map[string]any `json:"header,omitempty"`
	Claims  map[string]any `json:"claims,omitempty"`
	ID      string         `json:"id,omitempty"` // of an opaque token
	Made    time.Time      `json:"made,omitzero"`
	Start   string         `json:"start,omitempty"` // of an opaque token: fit to be shown
	prefix  string
	expires time.Time
}

// audience is the first one of an access token.
func (c *claims) audience() string {
	switch aud := c.Claims["aud"].(type) {
	case string:
		return aud
	case []any:
		if len(aud) > 0 {
			s, _ := aud[0].(string)
			return s
		}
	}
	return ""
}

var kindNames = map[opaque.Kind]string{opaque.Refresh: "refresh token", opaque.APIKey: "API key", opaque.Ticket: "ticket", opaque.ClientSecret: "client secret"}

// readToken tells what a token says, without any key. The error never holds the token.
func readToken(token string) (*claims, error) {
	if kind := opaque.KindOf(token); kind != opaque.None {
		prefix, _, _ := strings.Cut(token, "_")
		c := &claims{Kind: kindNames[kind], Start: opaque.Start(token), prefix: prefix}
		var err error
		if kind == opaque.Refresh {
			var t *opaque.RefreshToken
			if t, err = opaque.DecodeRefresh(token, prefix); err == nil {
				id := opaque.ID(t.Grant)
				c.ID, c.Made = id.String(), id.Time().UTC()
			}
		} else {
			var k *opaque.Key
			if k, err = opaque.DecodeKey(token, prefix, kind); err == nil {
				c.ID, c.Made = k.ID.String(), k.ID.Time().UTC()
			}
		}
		if errors.Is(err, opaque.ErrChecksum) {
			return nil, errors.New("it is cut short or mistyped: its checksum does not fit")
		}
		if err != nil {
			return nil, errors.New("it is cut short or longer than it was made")
		}
		return c, nil
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("it is neither a JWT nor an opaque token of this module")
	}
	c := &claims{Kind: "access token"}
	for i, into := range []*map[string]any{&c.Header, &c.Claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(b, into) != nil {
			return nil, errors.New("it has the shape of a JWT and cannot be decoded")
		}
	}
	if exp, ok := c.Claims["exp"].(float64); ok {
		c.expires = time.Unix(int64(exp), 0)
	}
	return c, nil
}

type inspection struct {
	claims
	Malformed string        `json:"malformed,omitempty"`
	Expired   bool          `json:"expired,omitempty"`
	Answer    *admin.Answer `json:"service,omitempty"` // absent: no service was asked
}

func (a *app) inspectCommand() *cobra.Command {
	var needs []string
	var any bool
	c := &cobra.Command{
		Use: "inspect [FILE]", Short: "Say what a token or key says, and why a service would refuse it",
		Long: `inspect reads one token or key from a file, or from the standard input, and says what it says, its times and its key.
With --store or --admin it asks the service which check lets it in or refuses it. The token itself is not printed.

Exit code 3: the token is malformed, has expired, or the service refuses it.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("", "inspect takes one file, or reads the standard input")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			path := "-"
			if len(args) == 1 {
				path = args[0]
			}
			return a.inspect(c.Context(), path, needs, any)
		},
	}
	c.Flags().StringSliceVar(&needs, "needs", nil, "`scopes` that the request would need, parted by commas")
	c.Flags().BoolVar(&any, "any", false, "one of --needs is enough")
	return c
}

func (a *app) inspect(ctx context.Context, path string, needs []string, any bool) error {
	secret, err := a.secret(path)
	if err != nil {
		return err
	}
	token := strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(secret.Reveal(), "Authorization:"), " "))
	token = strings.TrimSpace(strings.TrimPrefix(token, "Bearer "))
	x := inspection{}
	c, err := readToken(token)
	if err != nil {
		x.Malformed = err.Error()
		if !a.json {
			a.list("malformed", x.Malformed)
		} else if err := a.print(x); err != nil {
			return err
		}
		return errFound
	}
	x.claims = *c
	x.Expired = !x.expires.IsZero() && !time.Now().Before(x.expires)
	asked := a.store != "" || a.storeFile != "" || a.admin != "" || setting("", "APITOKEN_STORE") != "" || setting("", "APITOKEN_ADMIN") != ""
	if asked && (x.Kind == "access token" || x.Kind == "API key") {
		if x.Answer, err = a.ask(ctx, c, token, needs, any); err != nil {
			return err
		}
	}
	bad := x.Expired && x.Answer == nil || x.Answer != nil && !x.Answer.Good
	if a.json {
		err = a.print(x)
	} else {
		a.show(&x, asked)
	}
	if err == nil && bad {
		return errFound
	}
	return err
}

func (a *app) ask(ctx context.Context, c *claims, token string, needs []string, any bool) (*admin.Answer, error) {
	s, err := a.connect(ctx, c)
	if err != nil {
		return nil, err
	}
	defer s.close()
	q := admin.Question{Token: token, Any: any}
	for _, n := range needs {
		q.Needs = append(q.Needs, apitoken.Scope(n))
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	answer, err := s.Explain(ctx, q)
	return &answer, err
}

func (a *app) show(x *inspection, asked bool) {
	text := func(m map[string]any, name string) string {
		switch v := m[name].(type) {
		case nil:
			return ""
		case string:
			return v
		case float64:
			if name == "exp" || name == "iat" || name == "nbf" {
				return at(time.Unix(int64(v), 0))
			}
		}
		b, err := json.Marshal(m[name])
		if err != nil {
			return ""
		}
		return string(b)
	}
	pairs := []string{"kind", x.Kind, "id", x.ID, "start", x.Start, "made", at(x.Made)}
	if x.Kind == "access token" {
		pairs = append(pairs, "algorithm", text(x.Header, "alg"), "key", text(x.Header, "kid"))
	}
	names := make([]string, 0, len(x.Claims))
	for name := range x.Claims {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		pairs = append(pairs, name, text(x.Claims, name))
	}
	if x.Expired {
		pairs = append(pairs, "expired", time.Since(x.expires).Round(time.Second).String()+" ago, by this machine's clock")
	}
	a.list(pairs...)
	switch {
	case x.Answer != nil:
		fmt.Fprintln(a.out)
		var rows [][]string
		for _, s := range x.Answer.Steps {
			rows = append(rows, []string{s.Name, a.mark(s.OK), s.Detail})
		}
		a.table([]string{"CHECK", "RESULT", "DETAIL"}, rows)
		fmt.Fprintln(a.out)
		if x.Answer.Good {
			fmt.Fprintln(a.out, "The service would let it in.")
		} else {
			why := x.Answer.Class
			if x.Answer.Detail != "" {
				why += ", " + x.Answer.Detail
			}
			fmt.Fprintln(a.out, "The service refuses it:", clean(why))
		}
	case asked:
		fmt.Fprintln(a.out, "\nA service explains access tokens and API keys only.")
	case x.Kind == "access token":
		fmt.Fprintln(a.out, "\nNothing of this was checked: no service was asked. Give --store or --admin.")
	}
}

func (a *app) mark(ok bool) string {
	if ok {
		return "ok"
	}
	return "NO"
}
