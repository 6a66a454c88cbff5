package main

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
)

// all reads pages until there are limit items, each within the time of one answer; 0: all there are.
func all[T any](ctx context.Context, a *app, limit int, page func(ctx context.Context, after string, n int) (admin.Page[T], error)) (admin.Page[T], error) {
	out := admin.Page[T]{Items: []T{}}
	for {
		n := 500
		if limit > 0 {
			n = min(n, limit-len(out.Items))
		}
		one, cancel := context.WithTimeout(ctx, a.timeout)
		p, err := page(one, out.Next, n)
		cancel()
		if err != nil {
			return out, err
		}
		out.Items, out.Next = append(out.Items, p.Items...), p.Next
		if p.Next == "" || limit > 0 && len(out.Items) >= limit {
			return out, nil
		}
	}
}

const limitHelp = "how many at most; 0: all"

// reasonFlag adds the flag that every ending needs.
func reasonFlag(c *cobra.Command, reason *string) {
	c.Flags().StringVar(reason, "reason", "", "why, for the audit trail; required")
}

func needReason(reason string) error {
	if reason == "" {
		return usage(`Say why, as in --reason "a lost laptop".`, "--reason is required")
	}
	return nil
}

func (a *app) sessionsCommand() *cobra.Command {
	var q admin.SessionQuery
	limit := 100
	c := &cobra.Command{
		Use: "sessions", Short: "List live sessions, end one", Args: exactly(0, ""),
		Long: "sessions lists live sessions, the newest first. Sessions without a refresh token have no record and are not listed.",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.long(c.Context(), func(ctx context.Context, s *service) error {
				p, err := all(ctx, a, limit, func(ctx context.Context, after string, n int) (admin.Page[admin.Session], error) {
					q.After, q.Limit = after, n
					return s.Sessions(ctx, q)
				})
				if err != nil {
					return err
				}
				if a.json {
					return a.print(p)
				}
				var rows [][]string
				for _, x := range p.Items {
					rows = append(rows, []string{x.ID, x.Subject, x.Client, x.Scopes.String(), at(x.Created), or(at(x.LastUsed), "never"), or(x.LastAddress, x.Address)})
				}
				a.table([]string{"SESSION", "SUBJECT", "CLIENT", "SCOPES", "OPENED", "LAST USED", "FROM"}, rows)
				a.more(len(rows), p.Next != "")
				return nil
			})
		},
	}
	c.Flags().StringVar(&q.Subject, "subject", "", "of one `subject`")
	c.Flags().StringVar(&q.Client, "client", "", "of one `client`")
	c.Flags().IntVar(&limit, "limit", limit, limitHelp)
	var reason string
	end := &cobra.Command{
		Use: "end SESSION", Short: "End a session", Args: exactly(1, "the ID of a session"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.revoke(c.Context(), apitoken.ByGrant(args[0]), reason)
		},
	}
	reasonFlag(end, &reason)
	c.AddCommand(end)
	return c
}

func (a *app) keysCommand() *cobra.Command {
	var q admin.KeyQuery
	limit := 100
	c := &cobra.Command{
		Use: "keys", Short: "List API keys, make, rotate and revoke them", Args: exactly(0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.long(c.Context(), func(ctx context.Context, s *service) error {
				p, err := all(ctx, a, limit, func(ctx context.Context, after string, n int) (admin.Page[admin.Key], error) {
					q.After, q.Limit = after, n
					return s.Keys(ctx, q)
				})
				if err != nil {
					return err
				}
				if a.json {
					return a.print(p)
				}
				var rows [][]string
				for _, k := range p.Items {
					rows = append(rows, []string{k.ID, k.Subject, k.Name, keyState(k), k.Scopes.String(), or(at(k.Expires), "never"), or(at(k.LastUsed), "never")})
				}
				a.table([]string{"KEY", "SUBJECT", "NAME", "STATE", "SCOPES", "EXPIRES", "LAST USED"}, rows)
				a.more(len(rows), p.Next != "")
				return nil
			})
		},
	}
	c.Flags().StringVar(&q.Subject, "subject", "", "of one `subject`")
	c.Flags().IntVar(&limit, "limit", limit, limitHelp)
	c.AddCommand(a.keyShow(), a.keyCreate(), a.keyRotate(), a.keyRename(), a.keyRevoke())
	return c
}

func keyState(k admin.Key) string {
	switch {
	case k.Revoked:
		return "revoked"
	case !k.Expires.IsZero() && !time.Now().Before(k.Expires):
		return "expired"
	case k.Disabled:
		return "disabled"
	case !k.Replaced.IsZero():
		return "replaced"
	}
	return "active"
}

func (a *app) key(k admin.Key) {
	uses := strconv.FormatUint(k.Uses, 10)
	if k.MaxUses > 0 {
		uses += " of " + strconv.FormatUint(k.MaxUses, 10)
		if k.UsesPer != "" { // uses counts all that there ever were
			uses = strconv.FormatUint(k.Uses, 10) + ", at most " + strconv.FormatUint(k.MaxUses, 10) + " each " + k.UsesPer
		}
	}
	a.list("key", k.ID, "subject", k.Subject, "name", k.Name, "begins with", k.Start, "state", keyState(k), "scopes", k.Scopes.String(), "created", at(k.Created),
		"expires", or(at(k.Expires), "never"), "replaced", at(k.Replaced), "last used", or(at(k.LastUsed), "never"), "from", k.LastAddress, "uses", uses,
		"used scopes", k.UsedScopes.String())
}

func (a *app) keyShow() *cobra.Command {
	return &cobra.Command{Use: "show KEY", Short: "Show an API key; its secret is not kept", Args: exactly(1, "the ID of a key"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				k, err := s.Key(ctx, args[0])
				switch {
				case err != nil:
					return err
				case a.json:
					return a.print(k)
				}
				a.key(k)
				return nil
			})
		}}
}

// made prints a secret that is shown this once: it alone goes to the output, so that it can be piped.
func (a *app) made(v any, secret, what string) error {
	if a.json {
		return a.print(v)
	}
	a.note("%s. Its secret is shown this once:", what)
	_, err := a.out.Write([]byte(secret + "\n"))
	return err
}

func (a *app) keyCreate() *cobra.Command {
	var k admin.NewKey
	var scopes []string
	var expires string
	c := &cobra.Command{
		Use: "create", Short: "Make an API key and print its secret", Args: exactly(0, ""),
		Long: "create makes an API key. The secret alone is printed on the output, the rest on the error output.",
		RunE: func(c *cobra.Command, _ []string) error {
			if k.Subject == "" || len(scopes) == 0 {
				return usage("Such as keys create --subject alice --scopes orders:read --expires 90d.", "--subject and --scopes are required")
			}
			for _, s := range scopes {
				k.Scopes = append(k.Scopes, apitoken.Scope(s))
			}
			if expires != "" {
				d, err := length(expires)
				if err != nil {
					return err
				}
				k.Expires = time.Now().Add(d)
			}
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				if err := s.mayMake(); err != nil {
					return err
				}
				m, err := s.CreateKey(ctx, k)
				if err != nil {
					return err
				}
				return a.made(m, m.Secret, "API key "+m.Key.ID+" of "+m.Key.Subject+" is made")
			})
		},
	}
	c.Flags().StringVar(&k.Subject, "subject", "", "whose key it is")
	c.Flags().StringVar(&k.Name, "name", "", "shown in lists")
	c.Flags().StringSliceVar(&scopes, "scopes", nil, "`scopes`, parted by commas")
	c.Flags().StringVar(&expires, "expires", "", "how `long` it lives, such as 90d; default: as the service's lifetimes say")
	c.Flags().Uint64Var(&k.MaxUses, "max-uses", 0, "how often it may be used; 0: no limit")
	c.Flags().StringVar(&k.UsesPer, "uses-per", "", "fill that up each `hour`, day or month (UTC)")
	return c
}

func overlapFlag(c *cobra.Command, overlap *string) {
	c.Flags().StringVar(overlap, "overlap", "24h", "how `long` the older secret works")
}

func (a *app) keyRotate() *cobra.Command {
	var overlap string
	c := &cobra.Command{Use: "rotate KEY", Short: "Make an API key's successor and print its secret", Args: exactly(1, "the ID of a key"),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := length(overlap)
			if err != nil {
				return err
			}
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				m, err := s.RotateKey(ctx, args[0], d)
				if err != nil {
					return err
				}
				return a.made(m, m.Secret, "API key "+m.Key.ID+" follows "+args[0])
			})
		}}
	overlapFlag(c, &overlap)
	return c
}

func (a *app) keyRename() *cobra.Command {
	return &cobra.Command{Use: "rename KEY NAME", Short: "Give an API key another name", Args: exactly(2, "the ID of a key and a name"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				k, err := s.RenameKey(ctx, args[0], args[1])
				switch {
				case err != nil:
					return err
				case a.json:
					return a.print(k)
				}
				a.key(k)
				return nil
			})
		}}
}

func (a *app) keyRevoke() *cobra.Command {
	var reason string
	c := &cobra.Command{Use: "revoke KEY", Short: "End an API key", Args: exactly(1, "the ID of a key"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needReason(reason); err != nil {
				return err
			}
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				if err := s.RevokeKey(ctx, args[0], reason); err != nil {
					return err
				}
				return a.didIt("API key "+args[0]+" is revoked", "revoked", args[0])
			})
		}}
	reasonFlag(c, &reason)
	return c
}

// didIt says that something was done: a sentence, or a JSON object of one member.
func (a *app) didIt(text, member, value string) error {
	if a.json {
		return a.print(map[string]string{member: value})
	}
	a.note("%s.", text)
	return nil
}
