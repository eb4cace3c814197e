// What Grafana's own types say of the dashboard; the test puts the file's content behind this and has it checked.

import type { AnnotationQuery, Dashboard, FieldConfig, Panel, RowPanel } from '@grafana/schema';
import type { GraphFieldConfig } from '@grafana/schema';
import type { Options as Stat } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type {
  FieldConfig as TableField,
  Options as Table,
} from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { Options as TimeSeries } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// A value as JSON has it: enums by their text, and what Grafana fills in itself left out.
type Json<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Json<Item>[]
    : T extends object
      ? { [Name in keyof T]?: Json<T[Name]> }
      : T;

interface Drawn<Type, Options, Custom> extends Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> {
  type: Type;
  options: Options;
  fieldConfig: {
    defaults: Omit<FieldConfig, 'custom'> & { custom?: Custom };
    overrides: { matcher: { id: string; options: string }; properties: { id: string; value: unknown }[] }[];
  };
  // As Prometheus' data source has it.
  targets: {
    refId: string;
    datasource: { type: 'prometheus'; uid: string };
    expr: string;
    legendFormat?: string;
    format?: 'time_series' | 'table' | 'heatmap';
    instant?: boolean;
    range?: boolean;
    exemplar?: boolean;
  }[];
}

type AnyPanel =
  | Drawn<'stat', Stat, never>
  | Drawn<'table', Table, TableField>
  | Drawn<'timeseries', TimeSeries, GraphFieldConfig>;

interface AnyRow extends Omit<RowPanel, 'panels'> {
  panels: AnyPanel[];
}

// Prometheus' data source reads these beside what all annotations have.
interface Annotation extends AnnotationQuery {
  expr: string;
  step: string;
  titleFormat: string;
  textFormat: string;
  tagKeys: string;
  useValueForTime: boolean;
}

interface Whole extends Omit<Dashboard, 'annotations' | 'panels'> {
  annotations: { list: Annotation[] };
  panels: (AnyPanel | AnyRow)[];
}

export const dashboard: Json<Whole> =
