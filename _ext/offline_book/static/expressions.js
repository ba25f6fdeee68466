// Vega's expressions as nested functions, each made once out of its syntax tree.
//
// By default Vega writes JavaScript and evaluates it, which the page's policy forbids. Its own interpreter goes
// through the tree for every row of data and every frame, and sets up its surroundings anew each time: a slider
// would drag. What follows has the interpreter's interface (vega-embed's option `expr`).
"use strict";

window.bookExpressions = (() => {
  const CONSTANTS = { NaN, E: Math.E, PI: Math.PI, LN2: Math.LN2, LN10: Math.LN10, SQRT2: Math.SQRT2 };
  Object.assign(CONSTANTS, { LOG2E: Math.LOG2E, LOG10E: Math.LOG10E, SQRT1_2: Math.SQRT1_2 });
  Object.assign(CONSTANTS, { MIN_VALUE: Number.MIN_VALUE, MAX_VALUE: Number.MAX_VALUE, undefined });

  // Beside those of `Math`, and those that Vega gives with each expression.
  const FUNCTIONS = {
    isNaN: Number.isNaN,
    isFinite: Number.isFinite,
    parseFloat,
    parseInt,
    clamp: (value, low, high) => Math.max(low, Math.min(high, value)),
    length: (list) => list.length,
    join: (list, ...rest) => list.join(...rest),
    indexof: (list, ...rest) => list.indexOf(...rest),
    lastindexof: (list, ...rest) => list.lastIndexOf(...rest),
    slice: (list, ...rest) => list.slice(...rest),
    reverse: (list) => list.slice().reverse(),
    upper: (text) => String(text).toUpperCase(),
    lower: (text) => String(text).toLowerCase(),
    trim: (text) => String(text).trim(),
    substring: (text, ...rest) => String(text).substring(...rest),
    split: (text, ...rest) => String(text).split(...rest),
    replace: (text, ...rest) => String(text).replace(...rest),
    regexp: (...parts) => new RegExp(...parts),
    test: (pattern, text) => new RegExp(pattern).test(text),
  };
  const OF_EVENTS = new Set(["view", "item", "group", "xy", "x", "y"]);

  const BINARY = {
    "+": (a, b) => (c) => a(c) + b(c),
    "-": (a, b) => (c) => a(c) - b(c),
    "*": (a, b) => (c) => a(c) * b(c),
    "/": (a, b) => (c) => a(c) / b(c),
    "%": (a, b) => (c) => a(c) % b(c),
    "<": (a, b) => (c) => a(c) < b(c),
    ">": (a, b) => (c) => a(c) > b(c),
    "<=": (a, b) => (c) => a(c) <= b(c),
    ">=": (a, b) => (c) => a(c) >= b(c),
    "==": (a, b) => (c) => a(c) == b(c),
    "!=": (a, b) => (c) => a(c) != b(c),
    "===": (a, b) => (c) => a(c) === b(c),
    "!==": (a, b) => (c) => a(c) !== b(c),
    "&": (a, b) => (c) => a(c) & b(c),
    "|": (a, b) => (c) => a(c) | b(c),
    "^": (a, b) => (c) => a(c) ^ b(c),
    "<<": (a, b) => (c) => a(c) << b(c),
    ">>": (a, b) => (c) => a(c) >> b(c),
    ">>>": (a, b) => (c) => a(c) >>> b(c),
    "&&": (a, b) => (c) => a(c) && b(c),
    "||": (a, b) => (c) => a(c) || b(c),
  };
  const UNARY = {
    "+": (a) => (c) => +a(c),
    "-": (a) => (c) => -a(c),
    "~": (a) => (c) => ~a(c),
    "!": (a) => (c) => !a(c),
  };

  // Each takes a node and a function that makes its children; `c` is what the expression can see: the row
  // `datum`, the signals and scales in `params`, `event` and `item`.
  const NODES = {
    Literal: ({ value }) => () => value,
    Identifier({ name }) {
      if (["datum", "event", "item"].includes(name)) return (c) => c[name];
      if (Object.hasOwn(CONSTANTS, name)) return () => CONSTANTS[name];
      const key = `$${name}`;
      return (c) => c.params[key];
    },
    MemberExpression({ object, property, computed }, make) {
      const of = make(object);
      const name = computed ? make(property) : NODES.Literal({ value: property.name });
      const fixed = !computed || property.type === "Literal" ? name() : null;
      return fixed === null ? (c) => of(c)[name(c)] : (c) => of(c)[fixed];
    },
    CallExpression({ callee, arguments: given }, make, functions) {
      const name = callee.name.replace(/^_/, "");
      const all = given.map((node) => make(node));
      const [first, second, third] = all;
      if (name === "if") return (c) => (first(c) ? second(c) : third(c));
      if (OF_EVENTS.has(name) && !functions[name]) return (c) => c.event.vega[name](...all.map((a) => a(c)));
      const found = functions[name]?.bind(functions) ?? FUNCTIONS[name] ?? Math[name];
      if (!found) throw new Error(`static/expressions.js lacks Vega's function ${name}: add it there`);
      if (third) return (c) => found(...all.map((a) => a(c)));
      if (second) return (c) => found(first(c), second(c));
      return first ? (c) => found(first(c)) : () => found();
    },
    ArrayExpression({ elements }, make) {
      const all = elements.map((node) => make(node));
      return (c) => all.map((a) => a(c));
    },
    ObjectExpression({ properties }, make) {
      const all = properties.map(({ key, value }) => [key.name ?? key.value, make(value)]);
      return (c) => Object.fromEntries(all.map(([name, a]) => [name, a(c)]));
    },
    BinaryExpression: ({ operator, left, right }, make) => BINARY[operator](make(left), make(right)),
    LogicalExpression: ({ operator, left, right }, make) => BINARY[operator](make(left), make(right)),
    UnaryExpression: ({ operator, argument }, make) => UNARY[operator](make(argument)),
    ConditionalExpression({ test, consequent, alternate }, make) {
      const [if_, then, otherwise] = [test, consequent, alternate].map((node) => make(node));
      return (c) => (if_(c) ? then(c) : otherwise(c));
    },
  };

  function compiled(tree, { functions }) {
    const make = (node) => NODES[node.type](node, make, functions);
    return make(tree);
  }

  // A mark may be given by its far edge or its middle; Vega keeps position and size.
  function place(item, channels, swap, [near, far, middle, size]) {
    if (channels[far]) {
      if (channels[near]) {
        if (swap && item[near] > item[far]) [item[near], item[far]] = [item[far], item[near]];
        item[size] = item[far] - item[near];
      } else {
        item[near] = item[far] - (item[size] || 0);
      }
    }
    if (channels[middle]) item[near] = item[middle] - (item[size] || 0) / 2;
  }

  return {
    operator(context, { ast }) {
      const value = compiled(ast, context);
      return (params) => value({ params });
    },
    parameter(context, { ast }) {
      const value = compiled(ast, context);
      return (datum, params) => value({ datum, params });
    },
    event(context, { ast }) {
      const value = compiled(ast, context);
      return (event) => value({ event });
    },
    handler(context, { ast }) {
      const value = compiled(ast, context);
      return (params, event) => value({ params, datum: event.item?.datum, event });
    },
    encode(context, { marktype, channels }) {
      const values = Object.entries(channels).map(([name, { ast }]) => [name, compiled(ast, context)]);
      const swap = ["group", "image", "rect"].includes(marktype);
      return (item, params) => {
        const seen = { datum: item.datum, params, item };
        let changed = 0;
        for (const [name, value] of values) {
          const found = value(seen);
          if (item[name] === found) continue;
          item[name] = found;
          changed = 1;
        }
        if (marktype !== "rule") {
          place(item, channels, swap, ["x", "x2", "xc", "width"]);
          place(item, channels, swap, ["y", "y2", "yc", "height"]);
        }
        return changed;
      };
    },
  };
})();
