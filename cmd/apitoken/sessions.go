package main

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
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

// lists prints a listing, a page of the service's at a time: as JSON, or as a table with a row for each.
func lists[T any](c *cobra.Command, a *app, limit int, head []string, row func(T) []string, page func(ctx context.Context, s *service, after string, n int) (admin.Page[T], error)) error {
	return a.long(c.Context(), func(ctx context.Context, s *service) error {
		p, err := all(ctx, a, limit, func(ctx context.Context, after string, n int) (admin.Page[T], error) { return page(ctx, s, after, n) })
		if err != nil {
			return err
		}
		if a.json {
			return a.print(p)
		}
		var rows [][]string
		for _, x := range p.Items {
			rows = append(rows, row(x))
		}
		a.table(head, rows)
		a.more(len(rows), p.Next != "")
		return nil
	})
}

// shows makes a command that does one thing with what its first argument names, and prints what came of it.
func shows[T any](a *app, use, about string, args cobra.PositionalArgs, print func(T), do func(ctx context.Context, s *service, args []string) (T, error)) *cobra.Command {
	return &cobra.Command{Use: use, Short: about, Args: args, RunE: func(c *cobra.Command, args []string) error {
		return a.with(c.Context(), func(ctx context.Context, s *service) error {
			x, err := do(ctx, s, args)
			switch {
			case err != nil:
				return err
			case a.json:
				return a.print(x)
			}
			print(x)
			return nil
		})
	}}
}

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
			return lists(c, a, limit, []string{"SESSION", "SUBJECT", "CLIENT", "SCOPES", "OPENED", "LAST USED", "FROM"}, func(x admin.Session) []string {
				return []string{x.ID, x.Subject, x.Client, x.Scopes.String(), at(x.Created), or(at(x.LastUsed), "never"), or(x.LastAddress, x.Address)}
			}, func(ctx context.Context, s *service, after string, n int) (admin.Page[admin.Session], error) {
				q.After, q.Limit = after, n
				return s.Sessions(ctx, q)
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
			return lists(c, a, limit, []string{"KEY", "SUBJECT", "NAME", "STATE", "SCOPES", "EXPIRES", "LAST USED"}, func(k admin.Key) []string {
				return []string{k.ID, k.Subject, k.Name, keyState(k), k.Scopes.String(), or(at(k.Expires), "never"), or(at(k.LastUsed), "never")}
			}, func(ctx context.Context, s *service, after string, n int) (admin.Page[admin.Key], error) {
				q.After, q.Limit = after, n
				return s.Keys(ctx, q)
			})
		},
	}
	c.Flags().StringVar(&q.Subject, "subject", "", "of one `subject`")
	c.Flags().IntVar(&limit, "limit", limit, limitHelp)
	one := exactly(1, "the ID of a key")
	able := func(use, about string, disabled bool) *cobra.Command {
		return shows(a, use+" KEY", about, one, a.key, func(ctx context.Context, s *service, args []string) (admin.Key, error) {
			return s.EditKey(ctx, admin.KeyEdit{ID: args[0], Disabled: &disabled})
		})
	}
	c.AddCommand(a.keyCreate(), a.keyRotate(), a.keyEdit(), a.keyRevoke(),
		shows(a, "show KEY", "Show an API key; its secret is not kept", one, a.key, func(ctx context.Context, s *service, args []string) (admin.Key, error) { return s.Key(ctx, args[0]) }),
		shows(a, "rename KEY NAME", "Give an API key another name", exactly(2, "the ID of a key and a name"), a.key, func(ctx context.Context, s *service, args []string) (admin.Key, error) {
			return s.EditKey(ctx, admin.KeyEdit{ID: args[0], Name: &args[1]})
		}),
		able("disable", "Refuse an API key until it is enabled again", true), able("enable", "Let a disabled API key go on", false))
	return c
}

// keyState is a key's state, and that it will end because another one has taken its place.
func keyState(k admin.Key) string {
	if k.State == "active" && !k.Replaced.IsZero() {
		return "replaced"
	}
	return k.State
}

func (a *app) key(k admin.Key) {
	uses := strconv.FormatUint(k.Uses, 10)
	if k.MaxUses > 0 {
		uses += " of " + strconv.FormatUint(k.MaxUses, 10)
		if k.UsesPer != "" { // uses counts all that there ever were
			uses = strconv.FormatUint(k.Uses, 10) + ", at most " + strconv.FormatUint(k.MaxUses, 10) + " each " + k.UsesPer
		}
	}
	a.list("key", k.ID, "subject", k.Subject, "name", k.Name, "begins with", k.Start, "ends with", k.Last, "state", keyState(k), "scopes", k.Scopes.String(), "created", at(k.Created),
		"expires", or(at(k.Expires), "never"), "replaced", at(k.Replaced), "follows", k.Predecessor, "followed by", k.Successor, "last used", or(at(k.LastUsed), "never"), "from", k.LastAddress, "uses", uses,
		"used scopes", k.UsedScopes.String(), "metadata", pairs(k.Metadata))
}

// pairs are the names and values of a map in order, as flags take them.
func pairs(m map[string]string) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		list = append(list, name+"="+quoted(m[name]))
	}
	return strings.Join(list, " ")
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
	metadataFlag(c, &k.Metadata)
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

func (a *app) keyEdit() *cobra.Command {
	var name, expires string
	var scopes []string
	var meta map[string]string
	var edit admin.KeyEdit
	c := shows(a, "edit KEY", "Change an API key's name, scopes, end or metadata", exactly(1, "the ID of a key"), a.key, func(ctx context.Context, s *service, args []string) (admin.Key, error) {
		edit.ID = args[0]
		return s.EditKey(ctx, edit)
	})
	c.Long = "edit changes what its flags name, and nothing else. The secret stays what it is."
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		f := c.Flags()
		if f.Changed("name") {
			edit.Name = &name
		}
		if f.Changed("scopes") {
			edit.Scopes = &apitoken.Scopes{}
			for _, s := range scopes {
				*edit.Scopes = append(*edit.Scopes, apitoken.Scope(s))
			}
		}
		if edit.Metadata = meta; expires == "never" {
			edit.Never = true
		} else if expires != "" {
			d, err := length(expires)
			if err != nil {
				return err
			}
			edit.Expires = time.Now().Add(d)
		}
		if edit.Name == nil && edit.Scopes == nil && edit.Metadata == nil && expires == "" {
			return usage("Such as keys edit KEY --scopes orders:read --expires 90d.", "nothing is to be changed")
		}
		return nil
	}
	c.Flags().StringVar(&name, "name", "", "shown in lists")
	c.Flags().StringSliceVar(&scopes, "scopes", nil, "`scopes` that it has from now on, parted by commas")
	c.Flags().StringVar(&expires, "expires", "", "how `long` it lives from now on, such as 90d; or never")
	metadataFlag(c, &meta)
	return c
}

func metadataFlag(c *cobra.Command, meta *map[string]string) {
	c.Flags().StringToStringVar(meta, "metadata", nil, "`name=value`, parted by commas; an edit puts them beside what is there, and takes away what has no value")
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
